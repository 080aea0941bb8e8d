"""What the loop asks of a parallel strategy."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn


@dataclass(frozen=True)
class OptimSpec:
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) as values: a strategy builds its own optimiser.

    FSDP shards before it builds one, and Gemini accepts only its own.
    """

    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    epsilon: float
    max_grad_norm: float  # 0: no clipping


class Strategy(Protocol):
    """How one optimiser step is computed by many processes; trained weights are fp32 masters throughout."""

    model: nn.Module  # to be called in the forward pass

    def prepare(self, model: nn.Module, optim: OptimSpec) -> None:
        """Takes the module whose parameters with requires_grad are trained. Collective."""

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Holds one micro-batch, forward and backward; gradients are exchanged only in the last of a step."""

    def autocast(self) -> AbstractContextManager[None]:
        """Holds a forward pass in the precision of the run."""

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss that is already divided by the number of micro-batches."""

    def step(self, learning_rate: float) -> torch.Tensor:
        """Clips, updates, forgets the gradients; returns their norm before clipping, []. Collective."""

    def full_state(self) -> dict[str, torch.Tensor]:
        """The trained parameters in fp32 on the CPU, by name, whole on rank 0. Collective."""

    def save(self, folder: Path, rank: int) -> None:
        """Writes weights and optimiser for `load`. Collective."""

    def load(self, folder: Path) -> None:
        """Takes back what `save` wrote. Collective."""
