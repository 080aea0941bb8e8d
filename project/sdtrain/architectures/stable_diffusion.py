"""Stable Diffusion 1.x and 2.x: one text encoder, whose last hidden states are all that the network is told."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from PIL.Image import Image

from sdtrain.architectures.base import Added, Drawing
from sdtrain.denoiser import encode
from sdtrain.models import Parts, tokenize


class StableDiffusion:
    """Rombach et al. 2022, arXiv:2112.10752."""

    pipeline = StableDiffusionPipeline
    takes_sizes = False

    def condition(
        self, parts: Parts, prompts: Sequence[str], chunks: int, time_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, Added]:
        tokens = tokenize(parts.tokenizer, prompts, chunks).to(parts.device)
        return encode(parts.text_encoder, tokens), None

    def draw(self, parts: Parts, prompts: list[str], seeds: list[int], how: Drawing) -> list[Image]:
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
        # Encoded as in training, so that a long prompt means the same.
        wanted, nothing = (
            self.condition(parts, texts, how.prompt_chunks, None)[0]
            for texts in (prompts, [""] * len(prompts))
        )
        images: list[Image] = pipeline(
            prompt_embeds=wanted,
            negative_prompt_embeds=nothing,
            height=how.resolution,
            width=how.resolution,
            num_inference_steps=how.inference_steps,
            guidance_scale=how.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
        return images
