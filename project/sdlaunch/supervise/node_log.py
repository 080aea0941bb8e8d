"""The log of a node: the output of every start of the job there, each line with its time."""

from __future__ import annotations

import contextlib
import threading
from datetime import datetime, timezone
from pathlib import Path


class NodeLog:
    """Appends to a file, from several threads. Raises OSError if the file cannot be opened, and never later."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        self._lock = threading.Lock()

    def __enter__(self) -> NodeLog:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the disk may be full
            self._file.close()

    def begin(self, title: str, text: str) -> None:
        """Write the heading of a new start, and a first text."""
        self.note(f"==== {title} ====")
        if text:
            self.note(text)

    def note(self, text: str) -> None:
        """Write one line or several; a full disk ends the log, not the supervision."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._lock, contextlib.suppress(OSError):
            for line in text.split("\n"):
                print(now, line, file=self._file)
            self._file.flush()
