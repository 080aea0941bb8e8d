"""The output of torchrun, line by line: workers' lines to the terminal, everything to the log of the node."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from sdjob.protocol import OutputLine
from sdjob.redact import redact
from sdlaunch.supervise.terminal import Terminal

_TAIL = 200


class Stream:
    """Distributes lines. Torchrun's own (tables, tracebacks) go to the log only, to which every start appends.

    Raises OSError if the log cannot be opened, and never later.
    """

    def __init__(self, log: Path, terminal: Terminal, secrets: tuple[str, ...]) -> None:
        self.quiet = False  # workers' lines go to the log only
        self.tail: deque[str] = deque(maxlen=_TAIL)
        self._log = log.open("a", encoding="utf-8", errors="backslashreplace")
        self._lock = threading.Lock()
        self._terminal = terminal
        self._secrets = secrets
        self._in_traceback: set[int] = set()  # ranks

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the disk may be full
            self._log.close()

    def pump(self, lines: Iterable[bytes]) -> None:
        """Pass on every line until the stream ends."""
        for raw in lines:
            text = redact(raw.decode("utf-8", "replace").rstrip("\r\n"), self._secrets)
            line = OutputLine.parse(text)
            self.tail.append(text)
            self.note(text)
            if line.rank is not None and not self.quiet and not self._is_traceback(line.rank, line.text):
                label = "" if line.rank == 0 else line.label()
                self._terminal.show(label + line.text, progress=line.is_progress)

    def _is_traceback(self, rank: int, text: str) -> bool:
        """Whether this line is for the log only; the error itself, which ends a traceback, is for people."""
        if text.startswith("Traceback (most recent call last)"):
            self._in_traceback.add(rank)
        elif text and not text[0].isspace():
            self._in_traceback.discard(rank)
        return rank in self._in_traceback

    def say(self, text: str) -> None:
        """Show and log a text of the launcher."""
        text = redact(text, self._secrets)
        self.note(text)
        self._terminal.show(text)

    def note(self, text: str) -> None:
        """Log a text, each line with the time; a full disk ends the log, not the supervision."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._lock, contextlib.suppress(OSError):
            for line in text.split("\n"):
                print(now, line, file=self._log)
            self._log.flush()
