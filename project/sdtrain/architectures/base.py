"""What an architecture is asked for, and a pipeline in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL.Image import Image
from torch import nn

from sdjob.model.architectures import ArchitectureFacts
from sdjob.model.key_names import OriginalTensor
from sdjob.model.vae import encoded_at_once
from sdtrain.objective.process import NoiseProcess

# The denoiser's inputs besides latents and timesteps, by names that the architecture gives; each [B, …]. Where text
# encoders are trained, the token ids of each, by its name, instead of their output.
Conditioning = dict[str, torch.Tensor]


@dataclass(frozen=True)
class GenerationSettings:
    """How images are generated."""

    size: tuple[int, int]  # height, width
    inference_steps: int
    guidance_scale: float
    batch_size: int
    prompt_chunks: int = 1
    negative_prompt: str = ""


@runtime_checkable
class Architecture(Protocol):
    """One family of models: its conditioning, its training objective, and how it generates."""

    @property
    def facts(self) -> ArchitectureFacts: ...

    @property
    def pipeline(self) -> Any:
        """The pipeline class of diffusers, which also knows the layout of a LoRA; imported when it is asked for."""

    @property
    def takes_sizes(self) -> bool:
        """Whether `time_ids` [B, 6] are part of the conditioning: heights and widths of the original, of the crop's
        corner (top, left), and of the image."""

    def schedulers(self, folder: Path, *, zero_snr: bool) -> tuple[NoiseProcess, Any]:
        """The noise process of training, and the scheduler that generates, from the folder of the scheduler.

        zero_snr: rescale the noise schedule to end in pure noise.
        """

    def token_ids(self, tokenizers: Mapping[str, Any], prompts: Sequence[str], chunks: int) -> Conditioning:
        """Token ids by the names of the text encoders, [B, …]."""

    def length_warnings(
        self, tokenizers: Mapping[str, Any], prompts: Mapping[str, Sequence[str]], chunks: int
    ) -> Iterator[str]:
        """A sentence for each group of prompts of which some are cut."""

    def encode(self, encoders: Mapping[str, nn.Module], token_ids: Conditioning) -> Conditioning:
        """The conditioning of prompts. A function of each prompt alone, so that it can be cached."""

    def predict(
        self, denoiser: nn.Module, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The prediction [B, C, h, w] for noisy latents [B, C, h, w] and timesteps [B]."""

    def assemble(self, parts: Parts) -> Any:
        """The pipeline of diffusers around these parts."""

    def sample(
        self,
        parts: Parts,
        prompts: Conditioning,
        negative: Conditioning,
        seeds: list[int],
        how: GenerationSettings,
    ) -> list[Image]:
        """One image for each encoded prompt and seed; inside `torch.autocast` where the run is mixed.

        negative: the encoding of as many negative prompts, for classifier-free guidance.
        """

    def original_names(
        self, part: str, config: Mapping[str, Any], names: Iterable[str]
    ) -> dict[str, OriginalTensor]:
        """Where each tensor of a part is in a single file, from the names of all of them."""

    def modelspec(self, configs: Mapping[str, Mapping[str, Any]]) -> str:
        """The architecture's name in a single file (github.com/Stability-AI/ModelSpec), by the parts' configs."""

    def kohya_version(self, configs: Mapping[str, Mapping[str, Any]]) -> str:
        """The base model's name in the metadata of a LoRA, as kohya's trainer writes it."""


@dataclass(frozen=True)
class Parts:
    """A pipeline in memory. Trainable parameters are fp32; frozen parts have `dtype`, some VAEs fp32."""

    architecture: Architecture
    denoiser: Any
    vae: Any
    text_encoders: Mapping[str, Any]
    tokenizers: Mapping[str, Any]  # tokenizers by the names of the text encoders
    process: NoiseProcess
    sampler: Any  # the pipeline's scheduler, for generating images
    dtype: torch.dtype
    device: torch.device
    index: Mapping[str, Any]  # model_index.json

    @property
    def trainable(self) -> dict[str, Any]:
        """The parts that can be trained, by name."""
        return {self.architecture.facts.denoiser: self.denoiser, **self.text_encoders}

    @property
    def native_resolution(self) -> int:
        """The side in pixels of the images that the denoiser was made for."""
        return int(self.denoiser.config.sample_size) * self.latent_factor

    @property
    def latent_factor(self) -> int:
        """Pixels along a side of one latent."""
        return 1 << (len(self.vae.config.block_out_channels) - 1)

    @property
    def components(self) -> dict[str, Any]:
        """The components by the names of a pipeline's arguments."""
        names = self.architecture.facts.text_encoders
        tokenizers = {names[encoder]: tokenizer for encoder, tokenizer in self.tokenizers.items()}
        return {**self.trainable, **tokenizers, "vae": self.vae, "scheduler": self.sampler}

    def token_ids(self, prompts: Sequence[str], chunks: int) -> Conditioning:
        """Token ids by the names of the text encoders, on the host."""
        return self.architecture.token_ids(self.tokenizers, prompts, chunks)

    def encode(self, token_ids: Conditioning) -> Conditioning:
        """The conditioning of prompts, from their token ids on any device."""
        ids = {name: of_encoder.to(self.device) for name, of_encoder in token_ids.items()}
        return self.architecture.encode(self.text_encoders, ids)

    def posterior(self, pixels: torch.Tensor) -> DiagonalGaussianDistribution:
        """The VAE's posterior of images, uint8 [B, 3, H, W]: mean and deviation of latents, not normalized.

        In chunks, whose activations stay small beside those of a step and below 2^31 elements.
        """
        dtype = next(self.vae.parameters()).dtype  # `vae.dtype` walks through every module, in every step
        images = pixels.to(self.device, non_blocking=True).float().div_(127.5).sub_(1).to(dtype)
        chunks = torch.split(images, encoded_at_once(*pixels.shape[2:]))
        parameters = [self.vae.encode(chunk).latent_dist.parameters for chunk in chunks]
        return DiagonalGaussianDistribution(torch.cat(parameters) if len(chunks) > 1 else parameters[0])

    def normalized(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents of the VAE, at the scale that the denoiser works with."""
        shift = self.vae.config.get("shift_factor")
        return (latents - shift if shift else latents) * float(self.vae.config.scaling_factor)


def in_chunks(encoded: torch.Tensor, chunks: int) -> torch.Tensor:
    """Join the chunks of each prompt: [B × chunks, tokens, width] → [B, chunks × tokens, width]."""
    return encoded.reshape(len(encoded) // chunks, -1, encoded.shape[-1])
