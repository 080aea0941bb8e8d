"""What the loop asks of a parallel strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from sdjob.settings.run_spec import RunSpec


@dataclass(frozen=True)
class ParameterGroup:
    """The trained parameters whose names begin with `prefix`, and their learning rate before the schedule."""

    prefix: str
    learning_rate: float


@dataclass(frozen=True)
class OptimSpec:
    """An optimizer as values: a strategy builds its own, since FSDP shards before, and Gemini has only its Adam."""

    groups: tuple[ParameterGroup, ...]
    betas: tuple[float, float]
    weight_decay: float
    epsilon: float
    max_grad_norm: float  # 0: no clipping
    name: str = "adamw"


def optim_spec(spec: RunSpec, denoiser: str, text_encoders: Iterable[str] = ()) -> OptimSpec:
    """The optimizer of a run, by the names of the trained parts; text encoders have their own learning rate."""
    encoder_rate = spec.text_encoder_lr or spec.learning_rate
    return OptimSpec(
        groups=(
            ParameterGroup(f"{denoiser}.", spec.learning_rate),
            *(ParameterGroup(f"{name}.", encoder_rate) for name in text_encoders),
        ),
        betas=(spec.adam_beta1, spec.adam_beta2),
        weight_decay=spec.adam_weight_decay,
        epsilon=spec.adam_epsilon,
        max_grad_norm=spec.max_grad_norm,
        name=spec.optimizer,
    )


class Strategy(Protocol):
    """How one optimizer step is computed by many processes; trained weights are fp32 masters throughout."""

    model: nn.Module  # to be called in the forward pass

    def prepare(self, model: nn.Module, optim: OptimSpec) -> None:
        """Takes the module whose parameters with requires_grad are trained. Collective."""

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Holds one batch, forward and backward; gradients are exchanged only in the last of a step."""

    def autocast(self) -> AbstractContextManager[None]:
        """Holds a forward pass in the precision of the run."""

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss that is already divided by the number of batches."""

    def step(self, factor: float) -> torch.Tensor:
        """Clips, updates with each group's learning rate × factor, forgets the gradients; returns their norm
        before clipping, []. Collective."""

    def discard(self) -> None:
        """Forgets the gradients of a step that is not to be taken."""

    def masters(self) -> dict[str, torch.Tensor]:
        """This rank's share of the trained weights by name, fp32: the very tensors that the optimizer updates."""

    def full_state(self, shares: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """From each rank's shares the whole tensors, fp32, on the CPU of rank 0. Collective."""

    def applied(self, shares: Mapping[str, torch.Tensor] | None) -> AbstractContextManager[None]:
        """Inside, each rank can draw as many images as it likes, whatever the others do, with these shares
        in place of the masters (None: with the masters). Entering and leaving is collective."""

    def save(self, folder: Path, ema: Mapping[str, torch.Tensor] | None) -> None:
        """Writes weights, optimizer and the average's shares for `load`. Collective."""

    def snapshot(self, ema: Mapping[str, torch.Tensor] | None) -> Callable[[Path], None]:
        """What `save` would write now, copied to the host: to be called with a folder by every rank, in a thread
        beside the steps; such threads may wait for one another, and for nothing else. Collective."""

    def load(self, folder: Path, ema: Mapping[str, torch.Tensor] | None) -> None:
        """Takes back what any strategy saved, on any number of ranks; overwrites the shares of `ema`. Collective."""


def grouped(trained: Mapping[str, nn.Parameter], optim: OptimSpec) -> list[dict[str, Any]]:
    """The parameter groups for a torch optimizer, each with `base_lr`, its learning rate before the schedule."""
    groups: list[dict[str, Any]] = []
    for group in optim.groups:
        members = [p for name, p in trained.items() if name.startswith(group.prefix)]
        groups.append({"params": members, "lr": group.learning_rate, "base_lr": group.learning_rate})
    return groups
