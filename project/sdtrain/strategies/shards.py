"""Shards: the part of each tensor that one rank holds, as a range of the flattened tensor.

FSDP's row blocks, ZeRO's padded splits and Gemini's chunks are all such ranges. So gathering, checkpoints and the EMA
are written once, for ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

Shards = Mapping[str, torch.Tensor]  # name → this rank's values, flat; empty where it holds none


@dataclass(frozen=True)
class Range:
    """`length` values from `offset` on, of a tensor of `shape`."""

    shape: torch.Size
    offset: int
    length: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """These values of a whole tensor; a view where possible."""
        return tensor.flatten()[self.offset : self.offset + self.length]


def whole(shape: torch.Size) -> Range:
    """The range of a rank that holds all of a tensor."""
    return Range(shape, 0, shape.numel())


def gather_whole(
    shards: Shards, ranges: Mapping[str, Range], device: torch.device
) -> dict[str, torch.Tensor]:
    """The whole tensors on the CPU of rank 0, nothing on the others; one at a time over `device`. Collective."""
    tensors = {}
    for name, part in ranges.items():
        tensor = torch.zeros(part.shape.numel(), device=device)
        part.of(tensor).copy_(shards[name].flatten())
        dist.reduce(tensor, dst=0)  # each value comes from one rank, the others contribute zeros
        if dist.get_rank() == 0:
            tensors[name] = tensor.reshape(part.shape).cpu()
    return tensors


def overwrite(targets: Shards, values: Shards) -> None:
    """Copy the values into the targets, on whatever device these are."""
    for name, target in targets.items():
        target.copy_(values[name])


@contextmanager
def replaced(
    masters: Callable[[], Shards], shards: Shards | None, refresh: Callable[[], None]
) -> Iterator[None]:
    """Inside, the masters have other values; `refresh` copies them to the weights of the forward pass.

    `masters` is called each time, since a strategy may have moved them. Collective if `refresh` is.
    """
    if shards is None:
        yield
        return
    kept = {name: master.clone() for name, master in masters().items()}
    overwrite(masters(), shards)
    refresh()
    try:
        yield
    finally:
        overwrite(masters(), kept)
        refresh()
