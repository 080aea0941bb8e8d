"""Progress of long work: a bar on a terminal, one line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType

from tqdm import tqdm

from sdtrain.alive import Pulse

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Shows how far something is; nothing at all where `shown` is false (every rank but the first)."""

    def __init__(self, title: str, total: int, *, done: int = 0, shown: bool = True) -> None:
        self._title, self._total, self._first, self._shown = title, total, done, shown
        self._started = self._last_line = time.monotonic()
        interactive = shown and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=title, dynamic_ncols=True) if interactive else None
        self._printed = -1
        self._pulse = Pulse()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

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
        due = now - self._last_line >= _SECONDS_BETWEEN_LINES or done >= self._total or self._printed < 0
        if due and done != self._printed:
            self._last_line, self._printed = now, done
            rate = (done - self._first) / max(now - self._started, 1e-9)
            left = timedelta(seconds=round((self._total - done) / rate)) if rate else "?"
            line = (f"{self._title} {done:4d}/{self._total}", note, f"{rate:.1f} it/s", f"eta {left}")
            print("  ".join(part for part in line if part), flush=True)


def say(text: str) -> None:
    """One line for the person who reads the log."""
    print(text, flush=True)
