"""The output of torchrun, line by line: to the terminal for people, all of it to the log of the node."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import IO

from sdlaunch.display.redact import redact
from sdlaunch.supervise.node_log import NodeLog
from sdlaunch.supervise.terminal import Terminal

_PREFIX = re.compile(r"\[rank (\d+)\] ")  # command.LINE_PREFIX, filled in
_PROGRESS = re.compile(r"step +\d+/\d+ ")
_TAIL = 200


class Stream:
    """Distributes lines. What torchrun itself says (tables, tracebacks) goes to the log only."""

    def __init__(self, log: NodeLog, terminal: Terminal, secrets: tuple[str, ...]) -> None:
        self.quiet = False  # workers' lines go to the log only
        self.tail: deque[str] = deque(maxlen=_TAIL)
        self._log = log
        self._terminal = terminal
        self._secrets = secrets
        self._in_traceback: set[str] = set()  # ranks

    def pump(self, lines: Iterable[bytes]) -> None:
        """Passes on every line until the stream ends."""
        for raw in lines:
            line = redact(raw.decode("utf-8", "replace").rstrip("\r\n"), self._secrets)
            self.tail.append(line)
            self._log.note(line)
            match = _PREFIX.match(line)
            if match and not self.quiet:
                text = line[match.end() :].replace(match[0], "")  # torchrun repeats it inside torn lines
                if not self._is_traceback(match[1], text):
                    self._show(text if match[1] == "0" else match[0] + text)

    def _is_traceback(self, rank: str, text: str) -> bool:
        """Whether this line is for the log only; the error itself, which ends a traceback, is for people."""
        if text.startswith("Traceback (most recent call last)"):
            self._in_traceback.add(rank)
        elif text and not text[0].isspace():
            self._in_traceback.discard(rank)
        return rank in self._in_traceback

    def say(self, text: str) -> None:
        """A line of the launcher's own, for terminal and log."""
        text = redact(text, self._secrets)
        self._log.note(text)
        self._show(text)

    def _show(self, text: str) -> None:
        self._terminal.show(text, progress=_PROGRESS.match(text) is not None)


def lines_of(pipe: IO[bytes]) -> Iterable[bytes]:
    """Lines as they come."""
    return iter(pipe.readline, b"")
