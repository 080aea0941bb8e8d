"""Stable Diffusion 1.x and 2.x: conditioned on the last hidden states of one text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from PIL.Image import Image
from torch import nn

from sdjob.model import key_names
from sdjob.model.architectures import STABLE_DIFFUSION
from sdtrain.architectures import ddpm
from sdtrain.architectures.base import Conditioning, GenerationSettings, Parts, in_chunks
from sdtrain.model import tokenize


class StableDiffusion:
    """Rombach et al. 2022, arXiv:2112.10752."""

    facts = STABLE_DIFFUSION
    takes_sizes = False
    schedulers = staticmethod(ddpm.schedulers)
    token_ids = staticmethod(tokenize.clip_token_ids)
    length_warnings = staticmethod(tokenize.length_warnings)
    original_names = staticmethod(partial(key_names.original_tensors, STABLE_DIFFUSION.original_layout or ""))

    @property
    def pipeline(self) -> Any:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline

    def encode(self, encoders: Mapping[str, nn.Module], token_ids: Conditioning) -> Conditioning:
        """`hidden_states` [B, chunks × 77, width], from ids [B, chunks, 77]; each chunk is encoded by itself."""
        ids = token_ids["text_encoder"]
        hidden = encoders["text_encoder"](ids.flatten(0, 1))[0]
        return {"hidden_states": in_chunks(hidden, ids.shape[1])}

    def predict(
        self, denoiser: nn.Module, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        hidden = conditioning["hidden_states"]
        prediction: torch.Tensor = denoiser(
            latents, timesteps, encoder_hidden_states=hidden, return_dict=False
        )[0]
        return prediction

    def assemble(self, parts: Parts) -> Any:
        pipeline = self.pipeline(
            **parts.components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
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
        images: list[Image] = self.assemble(parts)(
            prompt_embeds=prompts["hidden_states"],
            negative_prompt_embeds=negative["hidden_states"],
            height=how.size[0],
            width=how.size[1],
            num_inference_steps=how.inference_steps,
            guidance_scale=how.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
        return images

    def modelspec(self, configs: Mapping[str, Mapping[str, Any]]) -> str:
        if not key_names.is_open_clip(configs["text_encoder"]):
            return "stable-diffusion-v1"
        v_prediction = configs["scheduler"].get("prediction_type") == "v_prediction"
        return f"stable-diffusion-v2-{'768-v' if v_prediction else '512'}"

    def kohya_version(self, configs: Mapping[str, Mapping[str, Any]]) -> str:
        version = "sd_v2" if key_names.is_open_clip(configs["text_encoder"]) else "sd_v1"
        v_prediction = configs["scheduler"].get("prediction_type") == "v_prediction"
        return f"{version}_v" if v_prediction else version
