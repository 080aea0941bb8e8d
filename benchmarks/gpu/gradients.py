"""The gradients of a run, element by element, without a look into any strategy.

AdamW's `exp_avg` is a weighted sum of the gradients of all steps so far, (1 - b) Σ b^(n-i) g_i. Every strategy saves it
in its checkpoints under the names of the weights, in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from sdjob.output.checkpoint_files import MODEL
from sdtrain.checkpoint import state_io
from sdtrain.strategies.shards import whole

Gradients = Mapping[str, torch.Tensor]  # by the names of the weights

_SMALL = 0.1  # of the mean norm: a tensor with a smaller gradient is compared with this


@dataclass(frozen=True)
class Difference:
    """Norms of differences, relative to those of what was wanted."""

    all: float  # of all elements
    worst: float  # of the tensor that differs most; 1: it has no gradient at all
    name: str  # of that tensor


def shapes(checkpoint: Path) -> dict[str, torch.Size]:
    """The shapes of the weights in a checkpoint of plain PyTorch."""
    with safe_open(checkpoint / MODEL, "pt") as file:
        return {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read(checkpoint: Path, shapes: Mapping[str, torch.Size]) -> Gradients:
    """`exp_avg` of these weights in a checkpoint of any strategy."""
    ranges = {name: whole(shape) for name, shape in shapes.items()}
    keys = ("master", *state_io.ADAM_STATE)
    tables = {key: {name: torch.zeros(shape) for name, shape in shapes.items()} for key in keys}
    state_io.load(checkpoint, tables, ranges)
    return tables["exp_avg"]


def compared(found: Gradients, wanted: Gradients) -> Difference:
    norms = {name: float(tensor.norm()) for name, tensor in wanted.items()}
    off = {name: float((found[name] - tensor).norm()) for name, tensor in wanted.items()}
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    least = _SMALL * total / len(norms) ** 0.5
    relative = {name: off[name] / max(norm, least) for name, norm in norms.items()}
    worst = max(relative, key=lambda name: relative[name])
    return Difference(sum(each**2 for each in off.values()) ** 0.5 / total, relative[worst], worst)
