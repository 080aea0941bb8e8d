"""Stable Diffusion XL (base): conditioned on two text encoders and on the sizes of the image."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from PIL.Image import Image
from torch import nn

from sdjob.model import key_names
from sdjob.model.architectures import STABLE_DIFFUSION_XL
from sdtrain.architectures import ddpm
from sdtrain.architectures.base import Conditioning, GenerationSettings, Parts, in_chunks
from sdtrain.model import tokenize


class StableDiffusionXL:
    """Podell et al. 2023, arXiv:2307.01952, sections 2.1 and 2.2."""

    facts = STABLE_DIFFUSION_XL
    takes_sizes = True
    schedulers = staticmethod(ddpm.schedulers)
    token_ids = staticmethod(tokenize.clip_token_ids)
    length_warnings = staticmethod(tokenize.length_warnings)
    original_names = staticmethod(
        partial(key_names.original_tensors, STABLE_DIFFUSION_XL.original_layout or "")
    )

    @property
    def pipeline(self) -> Any:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline

    def encode(self, encoders: Mapping[str, nn.Module], token_ids: Conditioning) -> Conditioning:
        """`hidden_states` [B, chunks × 77, widths]: the penultimate layers of both encoders side by side, from ids
        [B, chunks, 77]; `text_embeds` [B, width]: the second encoder's pooled output of the first chunk.

        WebUI and ComfyUI take the pooled output of the first chunk too (modules/sd_hijack_clip.py,
        comfy/sd1_clip.py).
        """
        hidden = []
        for name in self.facts.text_encoders:
            ids = token_ids[name]
            last_but_one, output = _outputs(encoders[name], ids.flatten(0, 1))
            hidden.append(in_chunks(last_but_one, ids.shape[1]))
        pooled = output.reshape(*ids.shape[:2], -1)[:, 0]
        return {"hidden_states": torch.cat(hidden, dim=-1), "text_embeds": pooled}

    def predict(
        self, denoiser: nn.Module, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        # Sizes stay integers: a model that is sharded in half precision casts only floating-point inputs.
        added = {name: conditioning[name] for name in ("text_embeds", "time_ids")}
        hidden = conditioning["hidden_states"]
        prediction: torch.Tensor = denoiser(
            latents, timesteps, encoder_hidden_states=hidden, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction

    def assemble(self, parts: Parts) -> Any:
        pipeline = self.pipeline(**parts.components, add_watermarker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def sample(
        self,
        parts: Parts,
        prompts: Conditioning,
        negative: Conditioning,
        seeds: list[int],
        how: GenerationSettings,
    ) -> list[Image]:
        pipeline = self.assemble(parts)
        if not how.negative_prompt and parts.index.get("force_zeros_for_empty_prompt", True):
            negative = {name: torch.zeros_like(value) for name, value in negative.items()}
        latents = pipeline(
            prompt_embeds=prompts["hidden_states"],
            pooled_prompt_embeds=prompts["text_embeds"],
            negative_prompt_embeds=negative["hidden_states"],
            negative_pooled_prompt_embeds=negative["text_embeds"],
            height=how.size[0],
            width=how.size[1],
            num_inference_steps=how.inference_steps,
            guidance_scale=how.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        ).images
        # The VAE is fp32, also where the run is mixed: it overflows in fp16.
        with torch.autocast(parts.device.type, enabled=False):
            pixels = parts.vae.decode(latents.to(parts.vae.dtype) / parts.vae.config.scaling_factor).sample
        images: list[Image] = pipeline.image_processor.postprocess(pixels)
        return images

    def modelspec(self, configs: Mapping[str, Mapping[str, Any]]) -> str:
        return "stable-diffusion-xl-v1-base"

    def kohya_version(self, configs: Mapping[str, Mapping[str, Any]]) -> str:
        return "sdxl_base_v1-0"


def _outputs(encoder: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states but one of a CLIP text encoder, and its first output.

    `output_hidden_states` gives nothing where FSDP has replaced the encoder's class: transformers looks up by class
    what it may record. The hooks run before those of FSDP, which has to see everything that leaves the encoder as its
    output: it gathers weights when the gradient of that arrives.
    """
    layers = next(module for module in encoder.modules() if isinstance(module, nn.ModuleList))
    entered: list[torch.Tensor] = []
    hooks = (
        layers[-1].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]), prepend=True),
        encoder.register_forward_hook(lambda _, __, output: (entered[0], output[0]), prepend=True),
    )
    try:
        outputs: tuple[torch.Tensor, torch.Tensor] = encoder(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
