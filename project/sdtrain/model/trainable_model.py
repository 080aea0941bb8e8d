"""The trainable model as one nn.Module, so that a strategy has a single module to wrap or shard."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sdtrain.architectures.base import Architecture, Conditioning


class TrainableModel(nn.Module):
    """The denoiser, after the text encoders where those are trained as well.

    Parameters are named by component (`unet.…`, `text_encoder.…`), in checkpoints too.
    """

    def __init__(
        self,
        architecture: Architecture,
        denoiser: nn.Module,
        text_encoders: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self._architecture = architecture
        self._encoders = tuple(text_encoders or ())
        for name, part in {architecture.facts.denoiser: denoiser, **(text_encoders or {})}.items():
            self.add_module(name, part)

    def forward(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The prediction [B, C, h, w] from noisy latents [B, C, h, w] and timesteps [B]."""
        architecture = self._architecture
        if self._encoders:
            encoders = {name: self.get_submodule(name) for name in self._encoders}
            conditioning = {**conditioning, **architecture.encode(encoders, conditioning)}
        denoiser = self.get_submodule(architecture.facts.denoiser)
        return architecture.predict(denoiser, noisy_latents, timesteps, conditioning)


def part_of(state: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """The weights of one part, by their names within it."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
