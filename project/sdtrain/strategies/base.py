"""The protocol between the step loop and a parallel strategy, and the optimizer as values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from sdjob.settings.run_spec import RunSpec
from sdtrain.strategies.shards import Shards

COMPUTE_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ParameterGroup:
    """The trainable parameters whose names start with `prefix`, and their learning rate before the schedule."""

    prefix: str
    learning_rate: float


@dataclass(frozen=True)
class OptimSpec:
    """An optimizer as values: each strategy builds its own, since FSDP shards first and Gemini has its own AdamW."""

    groups: tuple[ParameterGroup, ...]
    betas: tuple[float, float]
    weight_decay: float
    epsilon: float
    max_grad_norm: float  # 0: no clipping
    name: str = "adamw"

    @property
    def adam(self) -> dict[str, Any]:
        """The arguments of AdamW; an optimizer that takes fewer or others is built of the fields."""
        return {"betas": self.betas, "weight_decay": self.weight_decay, "eps": self.epsilon}


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
    """How many processes compute one optimizer step together; trainable weights are fp32 masters throughout."""

    model: nn.Module  # to be called in the forward pass

    def prepare(self, model: nn.Module, optim: OptimSpec) -> None:
        """Wrap or shard the model; parameters with requires_grad are trained. Collective."""

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one batch; gradients are exchanged only in the last one of a step."""

    def autocast(self) -> AbstractContextManager[None]:
        """Around a forward pass in the precision of the run."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss that is already divided by the number of batches."""

    def step(self, factor: float) -> torch.Tensor:
        """Clip, update with each group's learning rate × factor, and reset the gradients; returns their norm
        before clipping, []. Collective."""

    def discard(self) -> None:
        """Reset the gradients of a step that is skipped."""

    def finish(self) -> None:
        """Free gradients and optimizer state, where they are this project's: no step follows."""

    def masters(self) -> dict[str, torch.Tensor]:
        """This rank's shard of the trainable weights by name, fp32: the tensors that the optimizer updates."""

    def full_state(self, shards: Shards) -> dict[str, torch.Tensor]:
        """The whole tensors, fp32, on the CPU of rank 0, from the shards of all ranks. Collective."""

    def applied(self, shards: Shards | None) -> AbstractContextManager[None]:
        """Inside, each rank can generate any number of images, independently of the others, with these shards
        instead of the masters (None: with the masters). Entering and leaving is collective."""

    def writer(self, ema: Shards | None, *, background: bool) -> Callable[[Path], None]:
        """A function that writes weights, optimizer state and the shards of the EMA for `load`. Collective.

        Every rank calls it with the same folder. `background`: in a thread during the next steps, from a copy on the
        host that is made now; such threads may wait for one another, and for nothing else.
        """

    def load(self, folder: Path, ema: Shards | None) -> None:
        """Restore what any strategy saved, on any number of ranks; overwrites the shards of `ema`. Collective."""


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def grouped(trained: Mapping[str, nn.Parameter], optim: OptimSpec) -> list[dict[str, Any]]:
    """The parameter groups for a torch optimizer, each with `base_lr`, its learning rate before the schedule."""
    groups: list[dict[str, Any]] = []
    for group in optim.groups:
        members = [p for name, p in trained.items() if name.startswith(group.prefix)]
        groups.append({"params": members, "lr": group.learning_rate, "base_lr": group.learning_rate})
    return groups


def scale_learning_rates(groups: Iterable[dict[str, Any]], factor: float) -> None:
    """Set each group's learning rate to `base_lr` × factor."""
    for group in groups:
        group["lr"] = group["base_lr"] * factor
