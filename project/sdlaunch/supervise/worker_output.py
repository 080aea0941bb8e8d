"""The output of ranks and torchrun, line by line, without secrets: for the terminal and the logs of node and rank."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sdjob.formatting import visible
from sdjob.output.layout import OutputLayout
from sdjob.protocol import OutputLine
from sdjob.redact import redact
from sdlaunch.supervise.log_file import LogFile
from sdlaunch.supervise.terminal.terminal import Terminal

_TAIL, _JUDGED = 200, 2000  # lines, and characters of each, in which the cause of a failure is looked for


class Stream:
    """Distributes lines. Torchrun's own (tables, tracebacks) go to the log of the node only.

    Raises OSError if that log cannot be opened, and never later.
    """

    def __init__(self, layout: OutputLayout, node: int, terminal: Terminal, secrets: tuple[str, ...]) -> None:
        self.quiet = False  # workers' lines go to the logs only
        self.has_bar = False  # on the terminal, instead of lines of progress
        self.tail: deque[OutputLine] = deque(maxlen=_TAIL)
        self._log = _log_file(layout, layout.log(node))
        self._layout, self._node = layout, node
        self._ranks: dict[int, LogFile | None] = {}  # None: it cannot be opened
        self._lock = threading.Lock()
        self._terminal = terminal
        self._secrets = secrets
        self._in_traceback: set[int] = set()  # ranks

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        for log in (self._log, *self._ranks.values()):
            if log:
                log.close()

    def pump(self, lines: Iterable[tuple[int | None, bytes]]) -> None:
        """Pass on every line, with its rank (None: torchrun), until the stream ends."""
        for rank, raw in lines:
            line = OutputLine.of(
                rank, visible(redact(raw.decode("utf-8", "replace"), self._secrets), colors=True)
            )
            self.tail.append(replace(line, text=line.text[:_JUDGED]))
            self.note(str(line))
            if rank is not None:
                self._of_rank(rank, line)

    def _of_rank(self, rank: int, line: OutputLine) -> None:
        if rank not in self._ranks:
            self._ranks[rank] = self._opened(rank)
        if log := self._ranks[rank]:
            log.write(line.text)
        is_shown = not self.quiet and not (self.has_bar and line.is_progress)
        if is_shown and not self._is_traceback(rank, line.text):
            self._terminal.show(str(line) if rank else line.text, progress=line.is_progress)

    def _opened(self, rank: int) -> LogFile | None:
        with contextlib.suppress(OSError):  # a full disk; the log of the node has the lines too
            log = _log_file(self._layout, self._layout.rank_log(self._node, rank))
            log.write("==== start ====")
            return log
        return None

    def _is_traceback(self, rank: int, text: str) -> bool:
        """Whether this line is for the log only; the error itself, which ends a traceback, is for people."""
        if text.startswith("Traceback (most recent call last)"):
            self._in_traceback.add(rank)
        elif text and not text[0].isspace():
            self._in_traceback.discard(rank)
        return rank in self._in_traceback

    def say(self, text: str) -> None:
        """Show and log a text of the launcher."""
        text = visible(redact(text, self._secrets))
        self.note(text)
        self._terminal.show(text)

    def note(self, text: str) -> None:
        """Log a text, each line with the time."""
        with self._lock:
            self._log.write(text)


def _log_file(layout: OutputLayout, path: Path) -> LogFile:
    """Raises OSError."""
    layout.make(path.parent)
    return LogFile(path)
