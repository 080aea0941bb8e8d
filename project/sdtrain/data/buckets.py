"""Aspect-ratio buckets: images are trained on in about their own shape, a batch always of one shape.

Which bucket a step trains on, and which of its images, are functions of the place in the stream, so the number
of processes changes nothing, and a resumed run goes on where it was.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import count, islice

from sdtrain.data.sampling import Past, Sample, Size, permutation

_LONGEST = 2  # a side is at most so many times the resolution, and at least the inverse


def sizes_of(resolution: int, step: int) -> list[Size]:
    """Every bucket of a resolution: sides that are multiples of `step`, as many pixels as fit into the square."""
    area, found = resolution**2, set()
    for width in range(step, _LONGEST * resolution + 1, step):
        height = min(area // width, _LONGEST * resolution) // step * step
        if width * _LONGEST >= resolution and height * _LONGEST >= resolution:
            found |= {(width, height), (height, width)}
    return sorted(found)


def nearest(size: Size, sizes: Sequence[Size]) -> int:
    """The bucket whose shape is nearest to an image's, so that as little as possible is cropped."""
    shapes = [math.log(width / height) for width, height in ((size), *sizes)]
    return min(range(len(sizes)), key=lambda place: abs(shapes[place + 1] - shapes[0]))


@dataclass(frozen=True)
class Buckets:
    """The images of a stream by their shape.

    Each bucket is an endless stream of its own, epoch after epoch a permutation of its images, so none is left out
    and none comes more often than others. Optimizer steps take turns among the buckets in proportion to their
    images; a step takes the next `global_batch` images of its bucket, and where there are fewer, some again.
    How many the steps of the `past` have taken from each, follows from their turns; so it does not matter how large
    their batches were.
    """

    sizes: tuple[Size, ...]
    members: tuple[tuple[int, ...], ...]  # indices of images, none empty
    seed: int
    stream: str
    global_batch: int
    past: Past = ()  # of the run, before the steps to come

    def sample_at(self, place: int) -> Sample:
        """The sample at a place of the stream that is still to come, with its size."""
        step, within = divmod(place - self._places_before, self.global_batch)
        step += self._steps_before
        bucket, turn = turn_of(step, self._weights)
        members = self.members[bucket]
        turns, samples = self._before[bucket]
        epoch, position = divmod(samples + (turn - turns) * self.global_batch + within, len(members))
        order = permutation(self.seed, epoch, len(members), f"{self.stream}/{bucket}")
        # Positions of one epoch are those of no other bucket, and neither are the random numbers.
        first = sum(map(len, self.members[:bucket]))
        return Sample(epoch, first + position, members[int(order[position])], self.stream, self.sizes[bucket])

    def of(self, index: int) -> tuple[Size, ...]:
        """The size of an image of this stream."""
        return (self._size_by_index[index],)

    def every(self, _index: int) -> tuple[Size, ...]:
        """The sizes that an image of another stream is cropped to."""
        return self.sizes

    @cached_property
    def _weights(self) -> tuple[int, ...]:
        return tuple(map(len, self.members))

    @cached_property
    def _steps_before(self) -> int:
        return sum(stretch.steps for stretch in self.past)

    @cached_property
    def _places_before(self) -> int:
        return sum(stretch.steps * stretch.global_batch for stretch in self.past)

    @cached_property
    def _before(self) -> tuple[tuple[int, int], ...]:
        """(turns, samples) that each bucket has had in the past."""
        step, had = 0, [(0, 0) for _ in self.members]
        for stretch in self.past:
            step += stretch.steps
            turns = turns_before(step, self._weights)
            had = [
                (now, samples + (now - then) * stretch.global_batch)
                for now, (then, samples) in zip(turns, had, strict=True)
            ]
        return tuple(had)

    @cached_property
    def _size_by_index(self) -> dict[int, Size]:
        return {index: size for size, of in zip(self.sizes, self.members, strict=True) for index in of}

    def __str__(self) -> str:
        of = zip(self.sizes, self.members, strict=True)
        return ", ".join(f"{width}×{height}: {len(members)}" for (width, height), members in of)


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
        tuple(sizes[place] for place in used),
        tuple(tuple(members[place]) for place in used),
        seed,
        stream,
        global_batch,
    )


@lru_cache(maxsize=64)
def turn_of(step: int, weights: tuple[int, ...]) -> tuple[int, int]:
    """(bucket, its turn) of a step."""
    before = turns_before(step, weights)
    bucket = min(range(len(weights)), key=lambda bucket: Fraction(2 * before[bucket] + 1, weights[bucket]))
    return bucket, before[bucket]


def turns_before(step: int, weights: tuple[int, ...]) -> list[int]:
    """How many of the first `step` steps each bucket has, shared out in proportion to the weights (Webster's method).

    The k-th turn of bucket b is due at (k + 1/2) · total / weight_b; steps take turns in the order in which they are
    due. Until a time t there are about t of them, so it is enough to begin that much before the step.
    """
    total, ahead = sum(weights), len(weights)
    since = max(0, step - ahead)
    done = [math.floor(Fraction(since * weight, total) + Fraction(1, 2)) for weight in weights]

    def due(bucket: int) -> Iterator[tuple[Fraction, int]]:
        for turn in count(done[bucket]):
            yield Fraction(2 * turn + 1, weights[bucket]), bucket

    coming = heapq.merge(*(due(bucket) for bucket in range(len(weights))))
    for _, bucket in list(islice(coming, step - sum(done))):
        done[bucket] += 1
    return done
