"""Aspect-ratio buckets: images keep about their own shape, and each global batch has one shape.

Which images a step trains on is a function of (seed, epoch, position in the epoch).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from sdtrain.data.sampling import Sample, Size, permutation

_LONGEST = 2  # a side is at most so many times the resolution, and at least the inverse


def sizes_of(resolution: int, step: int) -> list[Size]:
    """Every bucket of a resolution: sides that are multiples of `step`, as many pixels as fit into the square."""
    area, sizes = resolution**2, set()
    for width in range(step, _LONGEST * resolution + 1, step):
        height = min(area // width, _LONGEST * resolution) // step * step
        if width * _LONGEST >= resolution and height * _LONGEST >= resolution:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def nearest(size: Size, sizes: Sequence[Size]) -> int:
    """The index of the bucket with the nearest aspect ratio, so that as little as possible is cropped."""
    ratio = math.log(size[0] / size[1])
    return min(range(len(sizes)), key=lambda index: abs(math.log(sizes[index][0] / sizes[index][1]) - ratio))


@dataclass(frozen=True)
class Buckets:
    """The images of a stream by their shape.

    A bucket permutes its images again and again, and this endless sequence is cut into global batches. Epoch e trains
    on the batches that e + 1 permutations complete and e do not: the remainder of a bucket is carried into the next
    epoch, and no image comes more often than others. The batches of an epoch are shuffled across buckets.
    """

    sizes: tuple[Size, ...]
    members: tuple[tuple[int, ...], ...]  # indices of images, none empty
    seed: int
    stream: str
    global_batch: int

    def sample_at(self, position: int) -> Sample:
        """The sample at a position of the stream, with its size."""
        step, within = divmod(position, self.global_batch)
        epoch = self._epoch_of(step)
        batches = _batches(self._counts, self.global_batch, self.seed, epoch, self.stream)
        bucket, batch = batches[step - self._steps_before(epoch)]
        members = self.members[bucket]
        repeat, index = divmod(batch * self.global_batch + within, len(members))
        order = _order(self.seed, repeat, len(members), f"{self.stream}/{bucket}")
        # No other bucket has these positions, so no two samples have the same random numbers.
        first = sum(self._counts[:bucket])
        return Sample(repeat, first + index, members[int(order[index])], self.stream, self.sizes[bucket])

    def next_epoch(self, position: int) -> int:
        """The first position at which an epoch starts, from this one on."""
        step = math.ceil(position / self.global_batch)
        epoch = self._epoch_of(step)
        start = self._steps_before(epoch)
        return (start if start == step else self._steps_before(epoch + 1)) * self.global_batch

    def of(self, index: int) -> tuple[Size, ...]:
        """The size of an image of this stream."""
        return (self._size_by_index[index],)

    def every(self, _index: int) -> tuple[Size, ...]:
        """The sizes that an image of another stream is cropped to."""
        return self.sizes

    def _steps_before(self, epoch: int) -> int:
        return sum(epoch * count // self.global_batch for count in self._counts)

    def _epoch_of(self, step: int) -> int:
        """The epoch of a step: the last one that starts at or before it."""
        lowest = step * self.global_batch // sum(self._counts)
        highest = (step + len(self.members)) * self.global_batch // sum(self._counts) + 1
        epochs = range(lowest, highest + 1)
        return lowest + bisect_right(epochs, step, key=self._steps_before) - 1

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        return tuple(map(len, self.members))

    @cached_property
    def _size_by_index(self) -> dict[int, Size]:
        return {index: size for size, of in zip(self.sizes, self.members, strict=True) for index in of}

    def __str__(self) -> str:
        of = zip(self.sizes, self._counts, strict=True)
        return ", ".join(f"{width}×{height}: {count}" for (width, height), count in of)


@lru_cache(maxsize=4)
def _batches(
    counts: tuple[int, ...], global_batch: int, seed: int, epoch: int, stream: str
) -> list[tuple[int, int]]:
    """(bucket, number of its batch) of each step of an epoch."""
    batches = [
        (bucket, batch)
        for bucket, count in enumerate(counts)
        for batch in range(epoch * count // global_batch, (epoch + 1) * count // global_batch)
    ]
    order = permutation(seed, epoch, len(batches), f"{stream}/batches")
    return [batches[index] for index in order.tolist()]


_order = lru_cache(maxsize=256)(permutation)  # of each bucket


def bucketed(
    images: Sequence[Size], resolution: int, step: int, seed: int, stream: str, global_batch: int
) -> Buckets:
    """The buckets that are in use, for images of these sizes."""
    sizes = sizes_of(resolution, step)
    members: dict[int, list[int]] = {}
    for index, size in enumerate(images):
        members.setdefault(nearest(size, sizes), []).append(index)
    used = sorted(members)
    return Buckets(
        tuple(sizes[bucket] for bucket in used),
        tuple(tuple(members[bucket]) for bucket in used),
        seed,
        stream,
        global_batch,
    )
