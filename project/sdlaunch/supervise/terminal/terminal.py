"""The terminal, written by a separate thread: one that is paused or gone does not block the launcher."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import TextIO

_CLEAR_LINE = "\r\x1b[K"
_LINES = 10_000  # waiting to be shown; more are left out
_WITHOUT_COMMANDS = ("", "dumb", "unknown")  # TERM where a line cannot be rewritten
_USUAL_WIDTH = 80  # columns, where the terminal does not say


class Terminal:
    """Shows lines in order. On a real terminal a progress line stays below all others until the next one replaces it;
    `in_place` says whether this is one."""

    def __init__(self, out: TextIO | None, environ: Mapping[str, str] = os.environ) -> None:
        self._out = _duplicate(out)
        is_terminal = self._out is not None and self._out.isatty()
        self.in_place = is_terminal and environ.get("TERM", "") not in _WITHOUT_COMMANDS
        self._progress = ""  # the line without its newline that is shown
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(_LINES)
        self._left_out = 0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def width(self) -> int:
        """Columns, which may change at any time."""
        if (out := self._out) is not None:
            with contextlib.suppress(OSError, ValueError):
                return os.get_terminal_size(out.fileno()).columns or _USUAL_WIDTH
        return _USUAL_WIDTH

    @property
    def is_idle(self) -> bool:
        """Whether everything is shown, or about to be."""
        return self._waiting.empty()

    def show(self, text: str, *, progress: bool = False) -> None:
        """Queue a text; never waits. An empty progress line removes the one that is shown."""
        write = self._replace if progress and self.in_place else self._write
        try:
            self._waiting.put_nowait(lambda: write(text))
        except queue.Full:
            self._left_out += 1

    def keep(self) -> None:
        """Let the progress line stay where it is, and what follows be shown below."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(self._settle)

    def close(self, patience: float = 2.0) -> None:
        """Wait for the last lines to be shown, but not for a blocked terminal."""
        self.keep()
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=patience)
        self._thread.join(patience)

    def _work(self) -> None:
        while (action := self._waiting.get()) is not None:
            if self._left_out:
                count, self._left_out = self._left_out, 0
                self._write(f"… {count} lines are in the log only")
            action()

    def _replace(self, text: str) -> None:
        if text != self._progress:
            self._put(_CLEAR_LINE * bool(self._progress) + text)
            self._progress = text

    def _write(self, text: str) -> None:
        """A line above the progress line."""
        self._put(f"{_CLEAR_LINE * bool(self._progress)}{text}\n{self._progress}")

    def _settle(self) -> None:
        self._put("\n" * bool(self._progress))
        self._progress = ""

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
