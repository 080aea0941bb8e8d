"""The starts of a run, as the launcher of node 0 records them: what they cost, also those that could not save it."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from sdjob import reading
from sdjob.output.layout import OutputLayout
from sdjob.writing import write_text

_LATEST, _MOST = 1e12, 1 << 30  # seconds and processes, more than any start has


@dataclass(frozen=True)
class Start:
    """From when to when (Unix times) how many processes ran; `until` is None while they do, or if all was killed.

    A start never begins before an earlier one ended, whatever the clock says.
    """

    since: float
    processes: int
    until: float | None = None
    finished: bool = False  # the run, so that what comes later may be another one
    clock: float | None = None  # time.monotonic() of that machine at `since`


def read(layout: OutputLayout) -> list[Start]:
    """In their order; empty if there is no record, or a damaged one."""
    with contextlib.suppress(OSError, ValueError):
        record = reading.json_of(reading.content(layout.starts, reading.MESSAGE))
        found = reading.typed(list[Start], record)
        if all(map(_is_possible, found)):
            return found
    return []


def _is_possible(start: Start) -> bool:
    """Whether sums of such numbers are numbers."""
    times = (start.since, start.until or 0.0, start.clock or 0.0)
    return (
        all(map(math.isfinite, times))
        and min(times) >= 0
        and max(times) < _LATEST
        and 0 <= start.processes < _MOST
    )


def of_last_run(starts: Sequence[Start]) -> Sequence[Start]:
    """The starts of the newest run: those after the one that finished an earlier run."""
    first = max((index + 1 for index, each in enumerate(starts[:-1]) if each.finished), default=0)
    return starts[first:]


def begin(layout: OutputLayout, now: float, processes: int, last_sign: float) -> None:
    """Add a start; one that was killed before lasted until its last sign of life. Raises OSError."""
    closed = [replace(each, until=each.until or max(each.since, last_sign)) for each in read(layout)]
    since = max(now, *(each.until or 0.0 for each in closed), 0.0)
    _write(layout, [*closed, Start(since, processes, clock=time.monotonic())])


def now(layout: OutputLayout) -> float:
    """The time for processes of a start that runs: what has passed on its machine since it began, by a clock that
    cannot be set."""
    *_, last = read(layout) or [Start(0.0, 0, until=0.0)]
    if last.until is not None or last.clock is None:
        return time.time()
    return last.since + max(0.0, time.monotonic() - last.clock)


def end(layout: OutputLayout, now: float, *, finished: bool) -> None:
    """The end of the last start. Raises OSError."""
    *earlier, last = read(layout) or [Start(now, 0)]
    _write(layout, [*earlier, replace(last, until=max(last.since, now), finished=finished)])


def unsaved(starts: Sequence[Start], saved_at: float | None, now: float) -> tuple[float, float]:
    """Seconds, and seconds times processes, of earlier starts after a checkpoint; None: this run has none.

    Of this start (the open one), only what an attempt took after it had saved that checkpoint.
    """
    if saved_at is None:
        finished = [index for index, each in enumerate(starts) if each.finished]
        starts = [each for each in starts[finished[-1] + 1 if finished else 0 :] if each.until]
    after = saved_at or 0.0
    spans = [
        (max(0.0, (each.until or now) - max(after, each.since)), each.processes)
        for each in starts
        if each.until or after > each.since
    ]
    return sum(seconds for seconds, _ in spans), sum(seconds * processes for seconds, processes in spans)


def _write(layout: OutputLayout, starts: Sequence[Start]) -> None:
    write_text(layout.starts, json.dumps([asdict(start) for start in starts], indent=1) + "\n")
