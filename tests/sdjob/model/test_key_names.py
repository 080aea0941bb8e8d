"""Both directions of the map of names agree, for every published architecture."""

import pytest

from sdjob.model import key_names
from sdjob.model.weights import Tensor
from tests.support.single import LAYOUTS, SD_1, SD_2, SD_XL, config_of, original_shapes, published_tensors


@pytest.mark.parametrize("model", [SD_1, SD_2, SD_XL])
def test_there_and_back(model, tmp_path):
    file = {name: Tensor(shape, tmp_path, "F16") for name, shape in original_shapes(model).items()}
    for part, tensors in published_tensors(model).items():
        found = key_names.diffusers_tensors(LAYOUTS[model], part, config_of(model, part), file)
        assert {name: tensor.shape for name, tensor in found.items()} == tensors


@pytest.mark.parametrize(
    ("model", "part", "name", "original"),
    [
        (SD_1, "unet", "down_blocks.1.resnets.0.conv_shortcut.weight", "input_blocks.4.0.skip_connection.weight"),
        (SD_1, "unet", "down_blocks.2.downsamplers.0.conv.bias", "input_blocks.9.0.op.bias"),
        (SD_1, "unet", "up_blocks.0.upsamplers.0.conv.bias", "output_blocks.2.1.conv.bias"),
        (SD_1, "unet", "up_blocks.1.upsamplers.0.conv.bias", "output_blocks.5.2.conv.bias"),
        (SD_1, "vae", "decoder.up_blocks.2.resnets.0.conv_shortcut.bias", "decoder.up.1.block.0.nin_shortcut.bias"),
        (SD_1, "vae", "encoder.mid_block.attentions.0.proj_attn.bias", "encoder.mid.attn_1.proj_out.bias"),
        (SD_1, "text_encoder", "text_model.final_layer_norm.bias", "final_layer_norm.bias"),
        (SD_2, "text_encoder", "encoder.layers.3.self_attn.k_proj.bias", "transformer.resblocks.3.attn.in_proj_bias"),
        (SD_XL, "text_encoder_2", "text_projection.weight", "text_projection"),
    ],
)  # fmt: skip
def test_names_of_the_published_files(model, part, name, original):
    (found,) = key_names.original_tensors(LAYOUTS[model], part, config_of(model, part), [name]).values()
    prefixes = {"unet": key_names.UNET, "vae": key_names.VAE, "text_encoder_2": key_names.XL_OPEN_CLIP}
    default = key_names.OPEN_CLIP if model == SD_2 else key_names.CLIP
    assert found.name == prefixes.get(part, default) + original
    assert found.third == (1 if "k_proj" in name else None)
    assert found.transposed == (original == "text_projection")


def test_what_a_text_encoder_does_not_use_is_left_out(tmp_path):
    names = ("transformer.resblocks.23.attn.in_proj_bias", "text_projection", "logit_scale", "ln_final.bias")
    file = {f"{key_names.OPEN_CLIP}{name}": Tensor((3072,), tmp_path) for name in names}
    found = key_names.diffusers_tensors(LAYOUTS[SD_2], "text_encoder", config_of(SD_2, "text_encoder"), file)
    assert list(found) == ["final_layer_norm.bias"]
