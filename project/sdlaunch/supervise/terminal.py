"""The terminal, written by a separate thread: one that is paused or gone does not block the launcher."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from typing import TextIO

_CLEAR_LINE = "\r\x1b[K"
_LINES = 10_000  # waiting to be shown; more are left out


class Terminal:
    """Shows lines in order. On a real terminal a progress line replaces the one before it."""

    def __init__(self, out: TextIO | None) -> None:
        self._out = _duplicate(out)
        self._in_place = self._out is not None and self._out.isatty()
        self._open_line = False  # a progress line without its newline is shown
        self._waiting: queue.Queue[tuple[str, bool] | None] = queue.Queue(_LINES)
        self._left_out = 0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def show(self, text: str, *, progress: bool = False) -> None:
        """Queue a text; never waits."""
        try:
            self._waiting.put_nowait((text, progress and self._in_place))
        except queue.Full:
            self._left_out += 1

    def close(self, patience: float = 2.0) -> None:
        """Wait for the last lines to be shown, but not for a blocked terminal."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=patience)
        self._thread.join(patience)

    def _work(self) -> None:
        while (line := self._waiting.get()) is not None:
            if self._left_out:
                count, self._left_out = self._left_out, 0
                self._write(f"… {count} lines are in the log only", progress=False)
            self._write(*line)
        if self._open_line:
            self._put("\n")

    def _write(self, text: str, progress: bool) -> None:
        before = _CLEAR_LINE if self._open_line and progress else "\n" if self._open_line else ""
        self._open_line = progress
        self._put(before + text + ("" if progress else "\n"))

    def _put(self, text: str) -> None:
        if self._out is not None:
            try:
                self._out.write(text)
                self._out.flush()
            except (OSError, ValueError):  # it is gone; the log goes on
                self._out = None


def _duplicate(out: TextIO | None) -> TextIO | None:
    """The same file under another descriptor: a flush of the original does not wait for this one."""
    if out is not None:
        with contextlib.suppress(OSError, ValueError):
            return os.fdopen(os.dup(out.fileno()), "w", encoding="utf-8", errors="backslashreplace")
    return None
