"""The order of samples and their random numbers: functions of (seed, epoch, position), never of the rank.

The samples of a run are one endless stream: epoch after epoch, each a permutation of the dataset. An
optimizer step takes the next `global_batch` positions of the stream, whatever the number of processes. So
the same global batch gives the same losses on 1 and on 4 processes, and a resumed run needs its position in the
stream and no saved random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Sample:
    """An example, and the (stream, epoch, position) that its random numbers depend on."""

    epoch: int
    position: int
    index: int
    stream: str
    size: Size | None = None  # the size to crop to; None: the square of the resolution


@dataclass(frozen=True)
class BatchShape:
    """The batch arithmetic: per device × accumulation × processes."""

    per_device: int
    accumulation: int
    world_size: int

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step."""
        return self.per_device * self.accumulation * self.world_size


def generator(seed: int, epoch: int, position: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose ("noise", "timestep", "crop", …) of one sample."""
    text = f"{seed}/{epoch}/{position}/{purpose}"
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(number & (2**63 - 1))


def sample_generator(seed: int, sample: Sample, purpose: str) -> torch.Generator:
    """The generator for one purpose of a sample; streams and purposes have independent numbers."""
    return generator(seed, sample.epoch, sample.position, f"{purpose}/{sample.stream}")


@lru_cache(maxsize=8)
def permutation(seed: int, epoch: int, length: int, stream: str) -> torch.Tensor:
    """The order of an epoch, [length]."""
    return torch.randperm(length, generator=generator(seed, epoch, 0, f"order/{stream}"))


def sample_at(seed: int, length: int, position: int, stream: str) -> Sample:
    """The sample at a position of the named stream over a dataset of `length` examples."""
    epoch, within = divmod(position, length)
    return Sample(epoch, within, int(permutation(seed, epoch, length, stream)[within]), stream)


def rank_batches(shape: BatchShape, rank: int, first_position: int, steps: int) -> Iterator[list[int]]:
    """This rank's positions of `steps` optimizer steps from `first_position` on, `accumulation` lists per step."""
    for step in range(steps):
        for number in range(shape.accumulation):
            block = number * shape.world_size + rank
            start = first_position + step * shape.global_batch + block * shape.per_device
            yield list(range(start, start + shape.per_device))
