"""Work that waits for a disk or a network, by several threads at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], threads: int = 16) -> list[Result]:
    """What `work` gives for each item, in their order. Raises what it raises."""
    from concurrent.futures import ThreadPoolExecutor

    def share(first: int) -> list[Result]:
        return [work(item) for item in items[first::threads]]

    with ThreadPoolExecutor(threads) as pool:
        shares = list(pool.map(share, range(threads)))
    return [shares[place % threads][place // threads] for place in range(len(items))]
