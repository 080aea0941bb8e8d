"""The bar of the stage that rank 0 is in, at the bottom of a terminal: rendered by rich from heartbeats."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

from sdjob.formatting import visible
from sdjob.protocol import TRAINING, Heartbeat
from sdlaunch.supervise.terminal.terminal import Terminal

_BETWEEN_LOOKS = 0.25  # seconds
_PATIENCE = 2.0  # seconds for a look at storage that may not answer
_NOTABLE = 1.0  # seconds of a stage that leaves a line when it is complete
_NARROWEST, _WIDEST = 6, 40  # columns of the bar itself
_GAP = 2  # columns between two texts
_LONGEST = 1e9  # seconds, of any value that is read


def is_possible(terminal: Terminal) -> bool:
    """Without a terminal, or without rich, the worker's lines are shown."""
    return terminal.in_place and find_spec("rich") is not None


@contextlib.contextmanager
def shown(notes: Path, terminal: Terminal) -> Iterator[None]:
    """While the body runs, show the current stage; each one that is complete leaves a line."""
    ended = threading.Event()

    def work() -> None:
        stages = Stages()
        while not ended.wait(_BETWEEN_LOOKS):
            beat, now = Heartbeat.read(notes, 0), time.monotonic()
            if beat is None or ended.is_set():
                continue
            if complete := stages.see(beat, now):
                terminal.show(complete)
            if terminal.is_idle:
                terminal.show(stages.bar(now, max(1, terminal.width - 1)), progress=True)

    thread = threading.Thread(target=work, name="bar", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_PATIENCE)
        terminal.show("", progress=True)


class Stages:
    """The stages of a job, as its heartbeats come in; all times are those of time.monotonic()."""

    def __init__(self) -> None:
        self._beat: Heartbeat | None = None
        self._beat_at = self._since = 0.0  # when the beat, and when its stage, came in
        self._spent: dict[str, float] = {}  # seconds in stages that others have interrupted

    def see(self, beat: Heartbeat, now: float) -> str | None:
        """Take the newest heartbeat; returns a line about the stage before, if that is complete and took its time."""
        before, self._beat = self._beat, beat
        if before != beat:
            self._beat_at = now
        if before and before.stage == beat.stage:
            return None
        since, self._since = self._since, now
        if before is None:
            return None
        seconds = self._spent.pop(before.stage, 0.0) + now - since
        total = before.total
        if before.stage == TRAINING and (beat.step or 0) < (total or 0):  # it saves or validates
            self._spent[before.stage] = seconds
            return None
        if seconds < _NOTABLE:
            return None
        texts = ("✓", _one_line(before.stage), f"{total}/{total}" if total else "", _clock(seconds))
        return "  ".join(text for text in texts if text)

    def bar(self, now: float, width: int) -> str:
        """One line of at most `width` columns about the current stage; what does not fit is left out."""
        beat = self._beat
        if beat is None:
            return ""
        count = f"{beat.done or 0:{len(str(beat.total))}d}/{beat.total}" if beat.total else ""
        if beat.seconds_left is None:
            clock = _clock(self._spent.get(beat.stage, 0.0) + now - self._since)
        else:
            clock = f"eta {_clock(beat.seconds_left - (now - self._beat_at))}"
        return _rendered(beat, count, clock, now, width)


def _rendered(beat: Heartbeat, count: str, clock: str, now: float, width: int) -> str:
    from rich.console import Console, RenderableType  # slow, and only for terminals
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    stage, note = _one_line(beat.stage)[:width], _one_line(beat.note)
    room, fits = width - len(stage), []
    for size in (len(count), len(clock), _NARROWEST, len(note)):  # the most important first
        fits.append(0 < size <= room - _GAP)
        room -= (size + _GAP) * fits[-1]
    bar = ProgressBar(
        beat.total,
        beat.done or 0,
        width=min(_NARROWEST + room, _WIDEST),
        complete_style="green",
        finished_style="green",
        pulse_style="green",
        animation_time=now,
    )
    cells: tuple[RenderableType, ...] = (Text(count), Text(clock, "cyan"), bar, Text(note, "dim"))
    shown = [cell for cell, is_shown in zip(cells, fits, strict=True) if is_shown]
    row = Table.grid(padding=(0, _GAP, 0, 0))
    row.add_row(Text(stage, "bold"), *shown)
    console = Console(file=io.StringIO(), width=width, force_terminal=True)  # colors as TERM and NO_COLOR say
    with console.capture() as captured:
        console.print(row)
    return captured.get().rstrip("\n")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(min(max(0.0, seconds), _LONGEST))))


def _one_line(text: str) -> str:
    return visible(text).translate({ord(white): " " for white in "\t\n"})
