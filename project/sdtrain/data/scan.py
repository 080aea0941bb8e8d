"""Going through all images before training: shared out, with those that cannot be used agreed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from sdjob.problems import JobError, Problem
from sdjob.threads import in_threads
from sdtrain.data.images import TrainingImages
from sdtrain.reporting.progress import Progress, say
from sdtrain.runtime.distributed import World
from sdtrain.runtime.stop import Stopped, StopRequest

Value = TypeVar("Value")
_BLOCK = 1024  # images between two looks at the clock and at a stop
_SHOWN = 5000  # with fewer it is over before a line could be read


def survey(
    images: TrainingImages,
    title: str,
    look: Callable[[TrainingImages, int], Value],
    world: World,
    stop: StopRequest,
    step: int,
) -> tuple[list[Value | None], TrainingImages]:
    """What `look` finds at each index, None for images that cannot be used, and the images without these.

    Collective: each rank goes through its share, in threads. Raises JobError (66) with the problems of all ranks
    where others must not stand in for so many, and Stopped.
    """
    mine = range(world.rank, len(images), world.size)
    found: dict[int, Value] = {}
    bad: dict[int, Problem] = {}
    shown = world.is_main and len(images) >= _SHOWN
    with Progress(title, len(images), shown=shown) as progress:
        for start in range(0, len(mine), _BLOCK):
            if stop:
                break
            block = mine[start : start + _BLOCK]
            for index, result in zip(block, in_threads(partial(_looked, look, images), block), strict=True):
                if isinstance(result, Problem):
                    bad[index] = result
                else:
                    found[index] = result
            progress.show(min((start + len(block)) * world.size, len(images)))
    if world.any(bool(stop)):
        raise Stopped(step)
    shares_of_all = world.gather((found, bad))
    every = {index: value for values, _ in shares_of_all for index, value in values.items()}
    unusable = dict(sorted(pair for _, problems in shares_of_all for pair in problems.items()))
    new = {index: problem for index, problem in unusable.items() if index not in images.bad}
    kept = images.without(new)
    say_passed_over(new, world)
    return [every.get(index) for index in range(len(images))], kept


def filled(values: Sequence[Value | None]) -> list[Value]:
    """Each value that is missing is the next one that is not, the first after the last; there must be one."""
    found: list[Value] = []
    coming = next(value for value in values if value is not None)
    for value in reversed(values):
        coming = coming if value is None else value
        found.append(coming)
    return found[::-1]


def say_passed_over(bad: Mapping[int, Problem], world: World) -> None:
    """Names the images that others will stand in for."""
    if world.is_main:
        for problem in bad.values():
            say(f"will be passed over: {problem.subject}: {problem.found}")


def _looked(
    look: Callable[[TrainingImages, int], Value], images: TrainingImages, index: int
) -> Value | Problem:
    """What is found there, or what is wrong."""
    try:
        return look(images, index)
    except JobError as error:
        return error.problems[0]
