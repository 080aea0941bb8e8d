"""Stable Diffusion 1.x and 2.x: one text encoder, whose last hidden states are all that the network is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline
from PIL.Image import Image
from torch import nn

from sdtrain.architectures.base import Conditioning, Sampling, in_chunks

if TYPE_CHECKING:
    from sdtrain.model.load import Parts


class StableDiffusion:
    """Rombach et al. 2022, arXiv:2112.10752."""

    name = "stable-diffusion"
    pipeline = StableDiffusionPipeline
    kohya_prefixes: Mapping[str, str] = {"unet": "lora_unet", "text_encoder": "lora_te"}
    takes_sizes = False

    def encode(self, encoders: Mapping[str, nn.Module], tokens: Conditioning) -> Conditioning:
        """`hidden_states` [B, chunks × 77, width], each chunk by itself."""
        ids = tokens["text_encoder"]
        hidden = encoders["text_encoder"](ids.flatten(0, 1))[0]
        return {"hidden_states": in_chunks(hidden, ids.shape[1])}

    def arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        return {"encoder_hidden_states": conditioning["hidden_states"]}

    def draw(
        self, parts: Parts, wanted: Conditioning, nothing: Conditioning, seeds: list[int], how: Sampling
    ) -> list[Image]:
        pipeline = StableDiffusionPipeline(
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            tokenizer=parts.tokenizer,
            unet=parts.unet,
            scheduler=parts.sampler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        images: list[Image] = pipeline(
            prompt_embeds=wanted["hidden_states"],
            negative_prompt_embeds=nothing["hidden_states"],
            height=how.resolution,
            width=how.resolution,
            num_inference_steps=how.inference_steps,
            guidance_scale=how.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
        return images
