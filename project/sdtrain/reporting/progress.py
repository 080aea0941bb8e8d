"""Progress of long work: a bar on a terminal, otherwise lines in the log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from tqdm import tqdm

from sdjob import protocol
from sdjob.formatting import visible
from sdtrain.reporting.metrics import RunningMean
from sdtrain.runtime.heartbeat import Pulse

_SECONDS_BETWEEN_LINES = (5.0, 30.0)  # in the first two minutes, after twelve hours
_GROWTH = 1 / 24  # in between, this fraction of the time since the start
_DECAY = 0.7  # of the old rate's weight, per printed line


class Progress:
    """Shows how far some work is; silent on ranks where `shown` is false."""

    def __init__(
        self, title: str, total: int, *, done: int = 0, shown: bool = True, steps: bool = False
    ) -> None:
        """`steps`: what is counted are optimizer steps, for the heartbeat."""
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, desc=title, dynamic_ncols=True, disable=not (shown and on_terminal)
        )
        self._lines = _Lines(title, total, done) if shown and not on_terminal else None
        self._pulse, self._steps, self._total = Pulse(title), steps, total

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude other work from the rate."""
        start = time.monotonic()
        try:
            yield
        finally:
            if self._lines:
                self._lines.paused += time.monotonic() - start

    def show(self, done: int, note: str = "") -> None:
        """Show that `done` of the total is done, and a note."""
        self._pulse(done if self._steps else None, done, self._total)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if self._lines:
            self._lines.show(done, note)


class _Lines:
    """The first line at once, then one every few seconds, later fewer, and the last.

    The rate is a running mean without pauses and without the first line, since the first step warms up. The time that
    is left includes as many pauses as so far.
    """

    def __init__(self, title: str, total: int, done: int) -> None:
        self.paused = 0.0  # seconds so far
        self._title, self._total, self._first = title, total, done
        self._start = self._printed_at = time.monotonic()  # without pauses
        self._printed, self._is_first = done, True
        self._steps, self._seconds = RunningMean(_DECAY), RunningMean(_DECAY)  # of each line

    def show(self, done: int, note: str) -> None:
        now = time.monotonic() - self.paused
        least, most = _SECONDS_BETWEEN_LINES
        steps, seconds = float(done - self._printed), now - self._printed_at
        is_due = done >= self._total or seconds >= min(most, max(least, (now - self._start) * _GROWTH))
        if not self._is_first:
            if not steps or not is_due:
                return
            steps, seconds = self._steps.add(steps), self._seconds.add(seconds)
        self._printed, self._printed_at, self._is_first = done, now, False
        rate, left = "? it/s", "?"
        if steps:
            step = max(seconds, 1e-9) / steps
            rate = f"{1 / step:.1f} it/s" if step <= 1 else f"{step:.1f} s/it"
            step += self.paused / (done - self._first)
            left = str(timedelta(seconds=round((self._total - done) * step)))
        parts = (f"{self._title} {done:4d}/{self._total}", note, rate, f"eta {left}")
        print(protocol.progress_line("  ".join(part for part in parts if part)), flush=True)


def say(text: str) -> None:
    """Print one line for readers of the log."""
    print(visible(text), flush=True)
