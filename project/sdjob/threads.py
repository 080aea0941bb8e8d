"""Threads for work that waits for a disk or a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], threads: int = 16) -> list[Result]:
    """The result of `work` for each item, in order. Raises what it raises."""
    from concurrent.futures import ThreadPoolExecutor

    def every_nth(first: int) -> list[Result]:  # a task an item would cost more than a short `work`
        return [work(item) for item in items[first::threads]]

    with ThreadPoolExecutor(threads) as pool:
        slices = list(pool.map(every_nth, range(threads)))
    return [slices[index % threads][index // threads] for index in range(len(items))]
