"""The parts of a Stable Diffusion pipeline: which are frozen, which are trained, and in what type."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdjob.model import trainable as trainable_parts
from sdjob.model.pipeline import XL, PipelineFolder
from sdjob.problems import JobError, bad_setting
from sdjob.settings.choices import TEXT_ENCODER_LAYERS
from sdjob.settings.run_spec import RunSpec
from sdtrain import architectures
from sdtrain.model.denoiser import Denoiser

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Parts:
    """A pipeline in memory. What is trained is fp32; the frozen parts have `dtype`, but for the VAE of SDXL."""

    class_name: str  # of diffusers' pipeline
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    noise_schedule: DDPMScheduler
    sampler: Any  # the pipeline's own scheduler, for generating images
    dtype: torch.dtype
    device: torch.device
    text_encoder_2: CLIPTextModelWithProjection | None = None  # of SDXL
    tokenizer_2: CLIPTokenizer | None = None
    zeros_for_empty_prompt: bool = False  # how SDXL draws without a negative prompt

    @property
    def text_encoders(self) -> dict[str, Any]:
        """By the names of their parts."""
        found = {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return {name: encoder for name, encoder in found.items() if encoder is not None}

    @property
    def tokenizers(self) -> dict[str, CLIPTokenizer]:
        """By the names of the text encoders."""
        found = {"text_encoder": self.tokenizer, "text_encoder_2": self.tokenizer_2}
        return {name: tokenizer for name, tokenizer in found.items() if tokenizer is not None}


def load(
    folder: PipelineFolder,
    precision: str,
    device: torch.device,
    *,
    allow_pickle: bool,
    lora: bool = False,
    train_text_encoder: bool = False,
    zero_snr: bool = False,
) -> Parts:
    """Reads the pipeline from disk; only safetensors, unless pickles are allowed.

    What is trained is fp32, or where only a LoRA of it is trained, of the type of the computation.
    `zero_snr`: the noise schedules are rescaled to end in pure noise.
    """
    dtype = DTYPES[precision]
    transformers.utils.logging.disable_progress_bar()

    def part(model: Any, name: str, dtype: torch.dtype) -> Any:
        loaded = model.from_pretrained(
            folder.path,
            subfolder=name,
            torch_dtype=dtype,
            variant=folder.parts[name].variant,
            use_safetensors=None if allow_pickle else True,
            local_files_only=True,
        )
        return loaded.to(device).requires_grad_(False).eval()

    opened = dtype if lora else torch.float32
    of_text = opened if train_text_encoder else dtype
    text_encoder = part(CLIPTextModel, "text_encoder", of_text)
    xl = folder.class_name == XL
    text_encoder_2 = part(CLIPTextModelWithProjection, "text_encoder_2", of_text) if xl else None
    rescaled = {"rescale_betas_zero_snr": True} if zero_snr else {}
    return Parts(
        class_name=folder.class_name,
        unet=part(UNet2DConditionModel, "unet", opened),
        vae=part(AutoencoderKL, "vae", torch.float32 if xl else dtype),  # in fp16, SDXL's gives NaN
        text_encoder=text_encoder,
        tokenizer=_tokenizer(folder.path, "tokenizer", text_encoder),
        noise_schedule=DDPMScheduler.from_pretrained(folder.path, subfolder="scheduler", **rescaled),
        sampler=_sampler(folder.path / "scheduler", zero_snr=zero_snr),
        dtype=dtype,
        device=device,
        text_encoder_2=text_encoder_2,
        tokenizer_2=_tokenizer(folder.path, "tokenizer_2", text_encoder_2) if text_encoder_2 else None,
        zeros_for_empty_prompt=bool(_index(folder.path).get("force_zeros_for_empty_prompt", True)),
    )


def _index(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
    return values


def _tokenizer(folder: Path, name: str, encoder: Any) -> CLIPTokenizer:
    """Without a configuration of its own, a tokenizer takes any length; the encoder does not."""
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder=name, local_files_only=True)
    length = encoder.config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, length)
    return tokenizer


def _sampler(folder: Path, *, zero_snr: bool) -> Any:
    """The pipeline's own scheduler. With zero terminal SNR it begins where only noise is, as it must
    (Lin et al. 2023, arXiv:2305.08891, section 3.3); one that cannot is replaced by DDIM.
    """
    kind = getattr(diffusers, json.loads((folder / "scheduler_config.json").read_text())["_class_name"])
    if not zero_snr:
        return kind.from_pretrained(folder)
    if "rescale_betas_zero_snr" not in inspect.signature(kind.__init__).parameters:
        kind = DDIMScheduler
    return kind.from_pretrained(folder, rescale_betas_zero_snr=True, timestep_spacing="trailing")


def make_trainable(parts: Parts, spec: RunSpec) -> Denoiser:
    """Opens for training what the run trains, in fp32: U-Net and text encoders, or a LoRA added to each.

    What gets no gradient in any step stays as it is: a process that waited for it would wait forever.
    LoRA: Hu et al. 2021, arXiv:2106.09685; A gaussian, B zero, so that training starts at the base model.
    """
    unet, text_encoders = parts.unet, parts.text_encoders if spec.train_text_encoder else {}
    denoiser = Denoiser(architectures.of(parts), unet, text_encoders)
    idle = {name: _idle(parts, name) for name in text_encoders}
    if spec.lora_rank:
        # The initial A must be the same on every rank and in every run of this seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            try:
                unet.add_adapter(_lora(spec, spec.lora_target_modules))
            except ValueError as error:
                remedy = "Name layers of the U-Net, such as to_k,to_q,to_v,to_out.0."
                raise JobError(bad_setting("lora_target_modules", str(error), remedy)) from None
            for name, encoder in text_encoders.items():
                encoder.add_adapter(_lora(spec, TEXT_ENCODER_LAYERS, idle[name]))
        for parameter in trainable(denoiser).values():
            parameter.data = parameter.data.float()  # at a LoRA's rates, bf16 weights would not move
    else:
        denoiser.requires_grad_(True)
        for name, encoder in text_encoders.items():
            for module in idle[name]:
                encoder.get_submodule(module).requires_grad_(False)
    if spec.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        for encoder in text_encoders.values():
            # Not the reentrant form, which needs an input that requires a gradient: token ids never do.
            encoder.activation_checkpointing_enable({"use_reentrant": False})
    if spec.attention == "xformers":
        unet.enable_xformers_memory_efficient_attention()
    return denoiser.train()


def _idle(parts: Parts, name: str) -> list[str]:
    """The modules of a text encoder that get no gradient, each with all that are below it."""
    encoder = parts.text_encoders[name]
    prefixes = trainable_parts.idle(parts.class_name, name, encoder.config.num_hidden_layers)
    names = [name for name, _ in encoder.named_modules()]
    return [name for name in names if f"{name.removeprefix('text_model.')}.".startswith(prefixes)]


def _lora(spec: RunSpec, layers: Sequence[str], idle: Sequence[str] = ()) -> LoraConfig:
    return LoraConfig(
        r=spec.lora_rank,
        lora_alpha=spec.lora_scale_alpha,
        init_lora_weights="gaussian",
        target_modules=list(layers),
        exclude_modules=[name for name in idle if name.endswith(tuple(layers))] or None,
    )


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
