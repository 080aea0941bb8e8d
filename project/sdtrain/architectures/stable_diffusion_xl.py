"""Stable Diffusion XL (base): two text encoders, and the sizes of the image besides the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionXLPipeline
from PIL.Image import Image
from torch import nn

from sdtrain.architectures.base import Conditioning, Sampling, in_chunks

if TYPE_CHECKING:
    from sdtrain.model.load import Parts

_ENCODERS = ("text_encoder", "text_encoder_2")


class StableDiffusionXL:
    """Podell et al. 2023, arXiv:2307.01952, sections 2.1 and 2.2."""

    name = "stable-diffusion-xl"
    pipeline = StableDiffusionXLPipeline
    kohya_prefixes: Mapping[str, str] = {
        "unet": "lora_unet",
        "text_encoder": "lora_te1",
        "text_encoder_2": "lora_te2",
    }
    takes_sizes = True

    def encode(self, encoders: Mapping[str, nn.Module], tokens: Conditioning) -> Conditioning:
        """`hidden_states` [B, chunks × 77, widths]: the last but one of both encoders side by side, each chunk by
        itself; `text_embeds` [B, width]: the second one's pooled output, of the first chunk.

        There is one pooled output for a prompt, and WebUI and ComfyUI, with which the result is drawn, take that of
        the first chunk (modules/sd_hijack_clip.py, comfy/sd1_clip.py).
        """
        hidden = []
        for name in _ENCODERS:
            ids = tokens[name]
            last_but_one, output = _outputs(encoders[name], ids.flatten(0, 1))
            hidden.append(in_chunks(last_but_one, ids.shape[1]))
        pooled = output.reshape(*ids.shape[:2], -1)[:, 0]
        return {"hidden_states": torch.cat(hidden, dim=-1), "text_embeds": pooled}

    def arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        # Sizes are whole numbers and stay so: what is sharded in half precision casts only floating-point inputs.
        added = {name: conditioning[name] for name in ("text_embeds", "time_ids")}
        return {"encoder_hidden_states": conditioning["hidden_states"], "added_cond_kwargs": added}

    def draw(
        self, parts: Parts, wanted: Conditioning, nothing: Conditioning, seeds: list[int], how: Sampling
    ) -> list[Image]:
        pipeline = StableDiffusionXLPipeline(
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            text_encoder_2=parts.text_encoder_2,
            tokenizer=parts.tokenizer,
            tokenizer_2=parts.tokenizer_2,
            unet=parts.unet,
            scheduler=parts.sampler,
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        if parts.zeros_for_empty_prompt:
            nothing = {name: torch.zeros_like(value) for name, value in nothing.items()}
        latents = pipeline(
            prompt_embeds=wanted["hidden_states"],
            pooled_prompt_embeds=wanted["text_embeds"],
            negative_prompt_embeds=nothing["hidden_states"],
            negative_pooled_prompt_embeds=nothing["text_embeds"],
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


def _outputs(encoder: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states but one of a CLIP text encoder, and its first output.

    `output_hidden_states` gives the former too, but nothing where FSDP has put a class of its own in the place of
    the encoder's: transformers looks up by the class what it may record. The hooks come before those of FSDP, which
    has to see all that leaves the encoder as its output: it gathers weights when the gradient of that arrives.
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
