"""Pipelines of real sizes with random weights and random images: for benchmarks without a download.

Sizes as in the configuration files of CompVis/stable-diffusion-v1-4 and stabilityai/stable-diffusion-2-1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Parts
from sdtrain.architectures.stable_diffusion import StableDiffusion
from sdtrain.data.sampling import Sample
from sdtrain.data.streams import StreamBatch
from sdtrain.model.load import DTYPES
from sdtrain.objective.diffusion import conditioning_of
from sdtrain.objective.process import Ddpm

_END = "<|endoftext|>"
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_TINY_VAE = {**_VAE, "block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "norm_num_groups": 2}
_UNETS: dict[str, dict[str, Any]] = {
    "sd14": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "sample_size": 96,
    },
    "tiny": {
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
}
_TEXT_ENCODERS: dict[str, dict[str, Any]] = {
    "sd14": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "sd21": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
}
RESOLUTIONS = {"sd14": 512, "sd21": 768, "tiny": 32}


def parts(model: str, precision: str, device: torch.device, *, lora: bool) -> Parts:
    """A pipeline of the size of sd14, sd21, or tiny; the same weights on every rank."""
    dtype = DTYPES[precision]

    def initialized(build: Callable[[], Any], dtype: torch.dtype) -> Any:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
            torch.manual_seed(0)
            return build().to(dtype).requires_grad_(False).eval()

    prediction = "v_prediction" if model == "sd21" else "epsilon"
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    return Parts(
        architecture=StableDiffusion(),
        denoiser=initialized(lambda: UNet2DConditionModel(**_UNETS[model]), dtype if lora else torch.float32),
        vae=initialized(lambda: AutoencoderKL(**(_TINY_VAE if model == "tiny" else _VAE)), dtype),
        text_encoders={
            "text_encoder": initialized(lambda: CLIPTextModel(CLIPTextConfig(**_TEXT_ENCODERS[model])), dtype)
        },
        tokenizers={"text_encoder": _tokenizer()},
        process=Ddpm(schedule, prediction),
        sampler=schedule,
        dtype=dtype,
        device=device,
        index={},
    )


def batches(size: int, resolution: int, rank: int) -> Iterator[tuple[StreamBatch, ...]]:
    """The same random images in every step; noise and timesteps change with the step."""
    generator = torch.Generator().manual_seed(rank)
    pixel_values = torch.rand(size, 3, resolution, resolution, generator=generator) * 2 - 1
    step = 0
    while True:
        yield (
            StreamBatch(
                pixel_values=pixel_values,
                posterior=None,
                prompts=["an image"] * size,
                encodings=None,
                samples=[Sample(step, rank * size + i, i, "synthetic") for i in range(size)],
                weight=1.0,
                names=["synthetic"] * size,
                skipped=[],
                image_weights=None,
            ),
        )
        step += 1


def cached(
    batches: Iterator[tuple[StreamBatch, ...]], parts: Parts, spec: RunSpec
) -> Iterator[tuple[StreamBatch, ...]]:
    """The same with images and prompts encoded once, on the host, as they come from the caches."""
    for number, (batch,) in enumerate(batches):
        if number == 0:
            with torch.no_grad():
                posterior = torch.cat([_posterior(parts, pixels) for pixels in batch.pixel_values])  # type: ignore[union-attr]
                encodings = conditioning_of(parts, batch.prompts, spec, None)
            encodings = {name: tensor.cpu() for name, tensor in encodings.items()}
        yield (replace(batch, pixel_values=None, posterior=posterior, encodings=encodings),)


def _posterior(parts: Parts, pixel_values: torch.Tensor) -> torch.Tensor:
    """The latent posterior of one image, [1, 2C, h, w]; one at a time to save memory."""
    posterior: torch.Tensor = parts.posterior(pixel_values[None]).parameters.cpu()
    return posterior


def _tokenizer() -> CLIPTokenizer:
    """A tokenizer without merges, one token per byte: the time of a step does not depend on the words of a prompt."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", _END]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=_END, model_max_length=77)
