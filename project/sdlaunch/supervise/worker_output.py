"""The output of torchrun, line by line: workers' lines to the terminal, everything to the log of the node."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import IO

from sdjob.protocol import OutputLine
from sdlaunch.display.redact import redact
from sdlaunch.supervise.node_log import NodeLog
from sdlaunch.supervise.terminal import Terminal

_TAIL = 200


class Stream:
    """Distributes lines. Torchrun's own (tables, tracebacks) go to the log only."""

    def __init__(self, log: NodeLog, terminal: Terminal, secrets: tuple[str, ...]) -> None:
        self.quiet = False  # workers' lines go to the log only
        self.tail: deque[str] = deque(maxlen=_TAIL)
        self._log = log
        self._terminal = terminal
        self._secrets = secrets
        self._in_traceback: set[int] = set()  # ranks

    def pump(self, lines: Iterable[bytes]) -> None:
        """Pass on every line until the stream ends."""
        for raw in lines:
            text = redact(raw.decode("utf-8", "replace").rstrip("\r\n"), self._secrets)
            line = OutputLine.parse(text)
            self.tail.append(text)
            self._log.note(text)
            if line.rank is not None and not self.quiet and not self._is_traceback(line.rank, line.text):
                self._terminal.show(
                    line.text if line.rank == 0 else line.label() + line.text, progress=line.is_progress
                )

    def _is_traceback(self, rank: int, text: str) -> bool:
        """Whether this line is for the log only; the error itself, which ends a traceback, is for people."""
        if text.startswith("Traceback (most recent call last)"):
            self._in_traceback.add(rank)
        elif text and not text[0].isspace():
            self._in_traceback.discard(rank)
        return rank in self._in_traceback

    def say(self, text: str) -> None:
        """Show and log a line of the launcher."""
        text = redact(text, self._secrets)
        self._log.note(text)
        self._terminal.show(text)


def lines_of(pipe: IO[bytes]) -> Iterable[bytes]:
    """Lines as they come."""
    return iter(pipe.readline, b"")
