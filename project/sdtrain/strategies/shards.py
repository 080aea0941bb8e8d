"""Shares: the part of each tensor that one rank holds, as a range of the tensor laid out flat.

FSDP's row blocks, ZeRO's padded splits and Gemini's chunks are all such ranges. So whatever has to know who
holds what (gathering, checkpoints, the average of the weights) is written once, for ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

Shares = Mapping[str, torch.Tensor]  # name → this rank's values, flat; empty where it holds none


@dataclass(frozen=True)
class Range:
    """`length` values from `offset` on, of a tensor of `shape`."""

    shape: torch.Size
    offset: int
    length: int

    @property
    def stop(self) -> int:
        return self.offset + self.length


def whole(shape: torch.Size) -> Range:
    """The range of a rank that holds all of a tensor."""
    return Range(shape, 0, shape.numel())


def gathered(shares: Shares, ranges: Mapping[str, Range], device: torch.device) -> dict[str, torch.Tensor]:
    """The whole tensors on the CPU of rank 0, nothing on the others; one at a time over `device`. Collective."""
    found = {}
    for name, part in ranges.items():
        tensor = torch.zeros(part.shape.numel(), device=device)
        tensor[part.offset : part.stop] = shares[name].flatten()
        dist.reduce(tensor, dst=0)  # each value comes from one rank, the others give zeros
        if dist.get_rank() == 0:
            found[name] = tensor.reshape(part.shape).cpu()
    return found


def put(targets: Shares, values: Shares) -> None:
    """Overwrites each target, on whatever device it lies."""
    for name, target in targets.items():
        target.copy_(values[name])


@contextmanager
def lent(masters: Callable[[], Shares], shares: Shares | None, refresh: Callable[[], None]) -> Iterator[None]:
    """Inside, the masters have other values; `refresh` brings them to the weights that are computed with.

    Masters are asked for again each time: a strategy may have moved them. Collective if `refresh` is.
    """
    if shares is None:
        yield
        return
    kept = {name: master.clone() for name, master in masters().items()}
    put(masters(), shares)
    refresh()
    try:
        yield
    finally:
        put(masters(), kept)
        refresh()
