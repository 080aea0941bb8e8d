"""What differs between kinds of diffusion models, beyond the weights of their parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL.Image import Image

from sdtrain.models import Parts

Added = dict[str, torch.Tensor] | None  # diffusers' added_cond_kwargs; None: the U-Net takes none


@dataclass(frozen=True)
class Drawing:
    """How pictures are generated."""

    resolution: int
    inference_steps: int
    guidance_scale: float
    batch_size: int
    prompt_chunks: int = 1


class Architecture(Protocol):
    """One kind of model: how it is told what to draw, and how it draws."""

    @property
    def pipeline(self) -> Any:
        """diffusers' pipeline, which knows the layout of a LoRA too."""

    @property
    def takes_sizes(self) -> bool:
        """Whether the network is told size and crop of a picture."""

    def condition(
        self, parts: Parts, prompts: Sequence[str], chunks: int, time_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, Added]:
        """What the network is given of prompts: encoder_hidden_states [B, tokens, width], and what is added to
        the embedding of the timestep. time_ids [B, 6]: heights and widths of the original, of the crop's corner
        (top, left), and of the picture."""

    def draw(self, parts: Parts, prompts: list[str], seeds: list[int], how: Drawing) -> list[Image]:
        """One picture per prompt and seed; inside `torch.autocast` where the run is mixed."""
