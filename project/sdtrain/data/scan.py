"""Scan the dataset in parallel across ranks and agree on unreadable images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from sdjob.problems import JobError, Problem
from sdjob.reading import in_threads
from sdtrain.context import RunContext
from sdtrain.data.streams import Stream
from sdtrain.data.training_images import TrainingImages
from sdtrain.reporting.progress import MANY, Progress
from sdtrain.runtime.distributed import World

Value = TypeVar("Value")
_BLOCK = 1024  # images between two checks for a stop


def scan(
    context: RunContext, stream: Stream, title: str, read: Callable[[TrainingImages, int], Value]
) -> tuple[list[Value | None], Stream]:
    """What `read` returns for each image of a stream, None for unusable ones, and the stream with these marked as bad.

    Collective: each rank reads a slice, in threads. Raises JobError (66) with the problems of all ranks where more
    images are unusable than may be skipped, and Stopped.
    """
    world, images = context.world, stream.images
    mine = range(world.rank, len(images), world.size)
    results: dict[int, Value | Problem] = {}
    shown = world.is_main and len(images) >= MANY
    progress = Progress(f"check {title} of the {stream.name} images", len(images), shown=shown)
    for start in range(0, len(mine), _BLOCK):
        if context.stop:
            break
        block = mine[start : start + _BLOCK]
        results |= zip(block, in_threads(partial(_read, read, images), block), strict=True)
        progress.show(min((start + len(block)) * world.size, len(images)))
    context.end_if_stopped()
    merged = {index: result for of_rank in world.gather(results) for index, result in of_rank.items()}
    values = [merged[index] for index in range(len(images))]
    bad = {index: value for index, value in enumerate(values) if isinstance(value, Problem)}
    new = {index: problem for index, problem in bad.items() if index not in images.bad}
    stream = replace(stream, images=images.without(new))
    report_skipped(new, world)
    return [None if isinstance(value, Problem) else value for value in values], stream


def _read(
    read: Callable[[TrainingImages, int], Value], images: TrainingImages, index: int
) -> Value | Problem:
    try:
        return read(images, index)
    except JobError as error:
        return error.problems[0]


def filled(values: Sequence[Value | None]) -> list[Value]:
    """Replace each None by the next value, after the last one by the first; one must be there."""
    following = next(value for value in values if value is not None)
    replaced: list[Value] = []
    for value in reversed(values):
        following = following if value is None else value
        replaced.append(following)
    return replaced[::-1]


def report_skipped(bad: Mapping[int, Problem], world: World) -> None:
    """Name the images that will be replaced by others."""
    for problem in bad.values():
        world.say(f"will be skipped: {problem.subject}: {problem.found}")
