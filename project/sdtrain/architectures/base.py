"""What differs between kinds of diffusion models, beyond the weights of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL.Image import Image
from torch import nn

if TYPE_CHECKING:
    from sdtrain.model.load import Parts

# What a network is told besides latents and timesteps, by names that its architecture gives; each [B, …]. Where text
# encoders are trained, their token ids [B, chunks, 77], by the names of the encoders, in place of what they make of it.
Conditioning = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sampling:
    """How images are generated."""

    resolution: int
    inference_steps: int
    guidance_scale: float
    batch_size: int
    prompt_chunks: int = 1


class Architecture(Protocol):
    """One kind of model: how it is told what to draw, and how it draws."""

    @property
    def name(self) -> str:
        """What the report calls a model of this kind."""

    @property
    def pipeline(self) -> Any:
        """diffusers' pipeline, which knows the layout of a LoRA too."""

    @property
    def kohya_prefixes(self) -> Mapping[str, str]:
        """What the names of a part's layers begin with in a LoRA of kohya's layout."""

    @property
    def takes_sizes(self) -> bool:
        """Whether the network is told size and crop of an image: `time_ids` [B, 6], heights and widths of the
        original, of the crop's corner (top, left), and of the image."""

    def encode(self, encoders: Mapping[str, nn.Module], tokens: Conditioning) -> Conditioning:
        """From the token ids of prompts, [B, chunks, 77] for each text encoder, what the network is told of them."""

    def arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """What the network takes besides latents and timesteps, as its forward pass names it."""

    def draw(
        self, parts: Parts, wanted: Conditioning, nothing: Conditioning, seeds: list[int], how: Sampling
    ) -> list[Image]:
        """One image for each encoded prompt and seed; inside `torch.autocast` where the run is mixed.
        nothing: the encoding of as many empty prompts, to be guided away from."""


def in_chunks(encoded: torch.Tensor, chunks: int) -> torch.Tensor:
    """The chunks of a prompt one after the other: [B × chunks, tokens, width] → [B, chunks × tokens, width]."""
    return encoded.reshape(len(encoded) // chunks, -1, encoded.shape[-1])
