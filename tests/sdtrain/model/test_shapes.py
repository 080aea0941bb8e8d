"""The tensors computed from a config are those that diffusers and transformers make of it."""

import math

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdjob.model import kinds, shapes

SD_1 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD_2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SD_XL = kinds.SD_XL.parts["unet"]
SMALL = {
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "transformer_layers_per_block": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "out_channels": 8,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SMALL_VAE = {
    "block_out_channels": [2, 4],
    "norm_num_groups": 2,
    "latent_channels": 3,
    "use_quant_conv": False,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
TEXT_1 = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
TEXT_XL = kinds.SD_XL.parts["text_encoder_2"]
TEXT_2 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}


def _unet(config):
    return UNet2DConditionModel(**config)


def _vae(config):
    return AutoencoderKL(**config)


def _text(config):
    return CLIPTextModel(CLIPTextConfig(**config))


def _projected(config):
    return CLIPTextModelWithProjection(CLIPTextConfig(**config))


@pytest.mark.parametrize(
    ("make", "shapes_of", "config", "numbers"),
    [
        (_unet, shapes.unet, SD_1, 859_520_964),
        (_unet, shapes.unet, SD_2, 865_910_724),
        (_unet, shapes.unet, SD_XL, 2_567_463_684),
        (_unet, shapes.unet, SMALL, None),
        (_vae, shapes.vae, VAE, 83_653_863),
        (_vae, shapes.vae, SMALL_VAE, None),
        (_text, shapes.text_encoder, TEXT_1, 123_060_480),
        (_text, shapes.text_encoder, TEXT_2, 340_387_840),
        (_projected, shapes.text_encoder_2, TEXT_XL, 694_659_840),
    ],
)
def test_names_and_shapes(make, shapes_of, config, numbers):
    with torch.device("meta"):
        tensors = make(config).state_dict()
    real = {shapes.todays_name(name): tuple(tensor.shape) for name, tensor in tensors.items()}
    ours = {name: tensor.shape for name, tensor in shapes_of(config).items()}
    assert ours == real
    if numbers:
        assert sum(math.prod(shape) for shape in ours.values()) == numbers
