"""What a run trains, as one module, so that a parallel strategy wraps or shards one thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdtrain.architectures.base import Architecture, Conditioning

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

UNET = "unet"


class Denoiser(nn.Module):
    """The U-Net, and before it the text encoders where they are trained as well.

    The trained parameters are named `unet.…`, `text_encoder.…` and so on, in checkpoints too.
    """

    def __init__(
        self,
        architecture: Architecture,
        unet: UNet2DConditionModel,
        text_encoders: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self._architecture = architecture
        self._encoders = tuple(text_encoders or ())
        for name, encoder in (text_encoders or {}).items():
            self.add_module(name, encoder)

    def forward(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """noise_pred [B, C, h, w] from noisy latents [B, C, h, w] and timesteps [B]."""
        if self._encoders:
            encoders = {name: self.get_submodule(name) for name in self._encoders}
            conditioning = {**conditioning, **self._architecture.encode(encoders, conditioning)}
        arguments = self._architecture.arguments(conditioning)
        noise_pred: torch.Tensor = self.unet(noisy_latents, timesteps, **arguments, return_dict=False)[0]
        return noise_pred


def part_of(state: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """The weights of one part by their names within it."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
