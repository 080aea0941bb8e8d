"""Progress of work that is counted: heartbeats, and lines in the log. The launcher shows a bar."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sdjob import protocol
from sdjob.formatting import visible
from sdtrain.reporting.metrics import RunningMean
from sdtrain.runtime import heartbeat
from sdtrain.runtime.heartbeat import Pulse

MANY = 5000  # images; fewer are looked at before anyone could read a line
_SECONDS_BETWEEN_LINES = (5.0, 30.0)  # in the first two minutes, after twelve hours
_GROWTH = 1 / 24  # in between, this fraction of the time since the start
_SHORTEST = 1.0  # seconds that measure a rate; less are those of the rest of a batch
_DECAY = 0.7  # of the old rate's weight, per printed line


class Progress:
    """Reports how far some work is; in the log only where `shown`: the first line at once, then one every few seconds,
    later fewer, and the last."""

    def __init__(
        self, stage: str, total: int, *, done: int = 0, shown: bool = True, steps: bool = False
    ) -> None:
        """Name the stage at once, since the first of what it counts may take long, unless nothing is to be done.

        `steps`: what is counted are optimizer steps, for the heartbeat; another line has named these.
        """
        self._stage, self._total, self._steps = stage, total, steps
        self._pulse, self._pace = Pulse(stage), _Pace(total, done) if shown else None
        if done < total:
            Pulse(stage)(None, done, total)  # of its own: the first one of the work is not held back
            if shown and not steps:
                heartbeat.name(stage)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude other work from the rate."""
        start = time.monotonic()
        try:
            yield
        finally:
            if self._pace:
                self._pace.paused += time.monotonic() - start

    def show(self, done: int, note: str = "") -> None:
        """Report that `done` of the total is done, and a note."""
        step = done if self._steps else None
        if self._pace is None:
            self._pulse(step, done, self._total)
            return
        is_due = self._pace.advance(done)
        left = self._pace.seconds_left(done)
        measured = "  ".join(part for part in (note, self._pace.rate) if part)
        self._pulse(step, done, self._total, left, measured)
        if is_due:
            eta = "?" if left is None else timedelta(seconds=round(left))
            print(
                protocol.progress_line(f"{self._stage} {done:4d}/{self._total}  {measured}  eta {eta}"),
                flush=True,
            )


class _Pace:
    """When a line is due, and the speed of what it counts.

    The rate is a running mean over lines, without pauses and without the first one, since the first step warms up;
    that of all steps where the last line follows the first one at once. The time that is left includes as many
    pauses as so far.
    """

    def __init__(self, total: int, done: int) -> None:
        self.paused = 0.0  # seconds so far
        self.rate = "? it/s"
        self._total, self._first = total, done
        self._start = self._line_at = time.monotonic()  # without pauses
        self._line, self._is_first = done, True
        self._steps, self._seconds = RunningMean(_DECAY), RunningMean(_DECAY)  # of each line
        self._seconds_each: float | None = None

    def advance(self, done: int) -> bool:
        """Whether a line is due, which then counts for the rate."""
        now = time.monotonic() - self.paused
        least, most = _SECONDS_BETWEEN_LINES
        steps, seconds = float(done - self._line), now - self._line_at
        is_due = done >= self._total or seconds >= min(most, max(least, (now - self._start) * _GROWTH))
        if not self._is_first:
            if not steps or not is_due:
                return False
            if seconds >= _SHORTEST:
                steps, seconds = self._steps.add(steps), self._seconds.add(seconds)
            elif not self._seconds.value:  # nothing else was measured
                steps, seconds = float(done - self._first), now - self._start
            else:
                return True
        self._line, self._line_at, self._is_first = done, now, False
        if steps:
            self._seconds_each = each = max(seconds, 1e-9) / steps
            self.rate = f"{1 / each:.1f} it/s" if each <= 1 else f"{each:.1f} s/it"
        return True

    def seconds_left(self, done: int) -> float | None:
        """None: nothing has been done."""
        if self._seconds_each is None:
            return None
        return (self._total - done) * (self._seconds_each + self.paused / (done - self._first))


def say(text: str) -> None:
    """Print one line for readers of the log."""
    print(visible(text), flush=True)
