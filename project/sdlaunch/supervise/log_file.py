"""A log that every start appends to, of bounded size, whose failures stop nothing."""

from __future__ import annotations

import contextlib
import os
from datetime import datetime, timezone
from pathlib import Path

from sdjob.writing import opened

_LARGEST = 64 << 20  # bytes; a full log becomes NAME.1, in place of the one before it


class LogFile:
    """Lines with their times (UTC), readable for the owner only. A full disk loses lines, and nothing else."""

    def __init__(self, path: Path, largest: int = _LARGEST) -> None:
        """Raises OSError if the file cannot be opened; its folder must be there."""
        self._path, self._largest = path, largest
        self._open()

    def _open(self) -> None:
        self._descriptor = opened(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def write(self, text: str) -> None:
        """Append a text, each line with the time."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        block = "".join(f"{now} {line}\n" for line in text.split("\n")).encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):
            if self._size and self._size + len(block) > self._largest:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                self.close()
                self._open()
            self._size += os.write(self._descriptor, block)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
