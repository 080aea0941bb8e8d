"""A very small pipeline with random weights, of the real classes, for tests to build on the fly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sddemo.scenes import SIZE
from sddemo.write_demo import PIPELINE

PredictionType = Literal["epsilon", "v_prediction"]
_TOKENIZER = PIPELINE / "tokenizer"


def make_tiny_pipeline(
    folder: str | Path,
    prediction_type: PredictionType = "epsilon",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a random Stable Diffusion pipeline (64 px, VAE factor 4, U-Net < 100k parameters) to `folder`.

    The caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = new_vae((4, 4, 8))
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=32,
            norm_num_groups=4,
        )
        text_encoder = CLIPTextModel(text_config(tokenizer(), hidden=32, layers=1, heads=2))
    parts = vae.to(dtype), text_encoder.to(dtype), tokenizer(), unet.to(dtype)
    return save(assemble(*parts, prediction_type), folder)


def make_tiny_xl_pipeline(folder: str | Path, seed: int = 0) -> Path:
    """Write a random Stable Diffusion XL pipeline: two text encoders of different widths, sizes as conditions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = new_vae((4, 4, 8), scaling_factor=0.7)
        words = tokenizer()
        pooled, time_embedding = 24, 8
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            cross_attention_dim=32 + 16,
            norm_num_groups=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_embedding,
            projection_class_embeddings_input_dim=pooled + 6 * time_embedding,
        )
        second = text_config(words, hidden=16, layers=3, heads=2)
        second.projection_dim = pooled
        pipeline = StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(text_config(words, hidden=32, layers=2, heads=2)),
            text_encoder_2=CLIPTextModelWithProjection(second),
            tokenizer=words,
            tokenizer_2=words,
            unet=unet,
            scheduler=scheduler("epsilon"),
            add_watermarker=False,
        )
    return save(pipeline, folder)


def tokenizer() -> CLIPTokenizer:
    """That of the embedded pipeline: a word of the world is one token, any other text falls back to bytes."""
    words: CLIPTokenizer = CLIPTokenizer.from_pretrained(_TOKENIZER)
    return words


def text_config(tokenizer: CLIPTokenizer, hidden: int, layers: int, heads: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=hidden,
    )


def scheduler(prediction_type: PredictionType) -> DDIMScheduler:
    """The noise schedule: squared cosine, sampled from pure noise."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,  # as Stable Diffusion has it; without effect on trailing spacing
    )


def new_vae(channels: tuple[int, int, int], scaling_factor: float = 1.0) -> AutoencoderKL:
    """An untrained autoencoder: 3 levels, factor 4, 4 latent channels."""
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=SIZE,
        scaling_factor=scaling_factor,
    )


def assemble(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    prediction_type: PredictionType,
) -> StableDiffusionPipeline:
    """A pipeline without a safety checker."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save(pipeline: DiffusionPipeline, folder: str | Path) -> Path:
    """Write a pipeline, with tokenizers that every version of transformers reads."""
    pipeline.save_pretrained(folder)
    for name, component in pipeline.components.items():
        if isinstance(component, CLIPTokenizer):
            shutil.copytree(_TOKENIZER, Path(folder) / name, dirs_exist_ok=True)
    return Path(folder)
