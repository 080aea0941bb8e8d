"""Stable Diffusion XL (base): two text encoders, and the sizes of the picture besides the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionXLPipeline
from PIL.Image import Image

from sdtrain.architectures.base import Added, Drawing
from sdtrain.models import Parts, tokenize


class StableDiffusionXL:
    """Podell et al. 2023, arXiv:2307.01952, sections 2.1 and 2.2."""

    pipeline = StableDiffusionXLPipeline
    takes_sizes = True

    def condition(
        self, parts: Parts, prompts: Sequence[str], chunks: int, time_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, Added]:
        """The last hidden states but one of both encoders side by side; the second one's pooled output."""
        assert parts.text_encoder_2 is not None and parts.tokenizer_2 is not None and time_ids is not None
        hidden = []
        for encoder, tokenizer in (
            (parts.text_encoder, parts.tokenizer),
            (parts.text_encoder_2, parts.tokenizer_2),
        ):
            tokens = tokenize(tokenizer, prompts, chunks).flatten(0, 1).to(parts.device)
            output = encoder(tokens, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        # Whole numbers stay so: what is sharded in half precision casts only floating-point inputs.
        added = {"text_embeds": output[0], "time_ids": time_ids.to(parts.device)}
        return torch.cat(hidden, dim=-1), added

    def draw(self, parts: Parts, prompts: list[str], seeds: list[int], how: Drawing) -> list[Image]:
        pipeline = StableDiffusionXLPipeline(
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            text_encoder_2=parts.text_encoder_2,
            tokenizer=parts.tokenizer,
            tokenizer_2=parts.tokenizer_2,
            unet=parts.unet,
            scheduler=parts.sampler,
            force_zeros_for_empty_prompt=parts.zeros_for_empty_prompt,
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        latents = pipeline(
            prompts,
            height=how.resolution,
            width=how.resolution,
            num_inference_steps=how.inference_steps,
            guidance_scale=how.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        ).images
        # The VAE overflows in fp16, so it is fp32, and its pass is no part of the mixed precision.
        with torch.autocast(parts.device.type, enabled=False):
            pixels = parts.vae.decode(latents.to(parts.vae.dtype) / parts.vae.config.scaling_factor).sample
        images: list[Image] = pipeline.image_processor.postprocess(pixels)
        return images
