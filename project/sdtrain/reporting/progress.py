"""Progress of long work, a line every few seconds.

A worker that was started by hand on a terminal shows a bar instead; below the launcher its output is a pipe.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

from tqdm import tqdm

from sdtrain.runtime.heartbeat import Pulse

_SECONDS_BETWEEN_LINES = (5.0, 30.0)  # at first, and after hours
_GROWTH = 1 / 24  # of the time since the start: 5 s up to two minutes, 30 s from twelve on


class Progress:
    """Shows how far something is; nothing at all where `shown` is false (every rank but the first)."""

    def __init__(self, title: str, total: int, *, done: int = 0, shown: bool = True) -> None:
        self._title, self._total, self._shown = title, total, shown
        self._started = self._last_line = time.monotonic()
        interactive = shown and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=title, dynamic_ncols=True) if interactive else None
        self._printed = -1
        self._pace = Pace(self._started, done)
        self._pulse = Pulse()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is not the work itself, and must not make it look slow."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._pace.pause(time.monotonic() - began)

    def show(self, done: int, note: str = "") -> None:
        """Says that `done` of the total is done; `note` is what else there is to know."""
        self._pulse()
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        rate = self._pace.at(now, done)
        first, most = _SECONDS_BETWEEN_LINES
        spacing = min(most, max(first, (now - self._started) * _GROWTH))
        due = now - self._last_line >= spacing or done >= self._total or self._printed < 0
        if due and done != self._printed:
            self._last_line, self._printed = now, done
            left = timedelta(seconds=round(self._pace.left(self._total - done))) if rate else "?"
            line = (f"{self._title} {done:4d}/{self._total}", note, _spelt(rate), f"eta {left}")
            print("  ".join(part for part in line if part), flush=True)


class Pace:
    """How fast it goes of late: over the last minute, or the last steps where they are slow.

    Pauses are no part of the rate, but of the time that is left: there will be more of them. The first step, which
    warms up, counts only as long as it is the only one.
    """

    _SECONDS, _MARKS = 60.0, 10

    def __init__(self, now: float, done: int) -> None:
        self._first = done
        self._done = done
        self._paused = self._rate = 0.0
        self._marks = deque([(now, done)])  # seconds without pauses; the rate is measured from the second one

    def pause(self, seconds: float) -> None:
        """So long nothing could be done."""
        self._paused += seconds

    def at(self, now: float, done: int) -> float:
        """The rate (1/s) when `done` is done."""
        working = now - self._paused
        since, before = self._marks[min(1, len(self._marks) - 1)]
        self._done, self._rate = done, (done - before) / max(working - since, 1e-9)
        if working - self._marks[-1][0] >= 1 or len(self._marks) == 1:
            self._marks.append((working, done))
        while len(self._marks) > self._MARKS and working - self._marks[1][0] > self._SECONDS:
            self._marks.popleft()
        return self._rate

    def left(self, steps: int) -> float:
        """Seconds for so many more, with as many pauses as so far."""
        return steps * (1 / self._rate + self._paused / (self._done - self._first))


def _spelt(rate: float) -> str:
    if rate == 0:
        return "? it/s"
    return f"{rate:.1f} it/s" if rate >= 1 else f"{1 / rate:.1f} s/it"


def say(text: str) -> None:
    """One line for the person who reads the log."""
    print(text, flush=True)
