"""The time of one call of verify.sh or speed.sh: a row starts only if it should end in time.

How long it should take is known from the longest row of its kind so far, and guessed before there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

NO_TIME = "no time left"  # the outcome of a row that the next call repeats


class Budget:
    """Seconds of a call, shared by threads."""

    def __init__(
        self, seconds: float, guesses: Mapping[str, float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`guesses`: seconds of a row by kind."""
        self._clock, self._end = clock, clock() + seconds
        self._guesses = guesses
        self._longest: dict[str, float] = {}

    @property
    def left(self) -> float:
        """Seconds until a row that runs has to end."""
        return max(0.0, self._end - self._clock())

    def why_not(self, kind: str) -> str:
        """Why no row of this kind may start; empty: it may."""
        needed, left = self._longest.get(kind, self._guesses[kind]), self.left
        return f"it takes about {needed:.0f} s, {left:.0f} s are left" if needed > left else ""

    @contextmanager
    def row(self, kind: str) -> Iterator[None]:
        """Around a row, to learn how long it takes."""
        started = self._clock()
        yield
        self.learn(kind, self._clock() - started)

    def learn(self, kind: str, seconds: float) -> None:
        self._longest[kind] = max(seconds, self._longest.get(kind, 0.0))


def too_late(limit: float, left: float) -> dict[str, Any]:
    """The outcome of a row without a result after its own limit, or after the seconds that were left for it."""
    if left < limit:
        return {"outcome": NO_TIME, "why": f"no result in the {left:.0f} s that were left"}
    return {"outcome": "failed", "why": f"no result after {limit:.0f} s"}
