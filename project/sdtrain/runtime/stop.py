"""Requests to stop: a signal to this process, or the flag file that the launcher creates."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sdjob import protocol


class StopRequest:
    """Whether this process was asked to stop; the ranks agree on it at a step boundary."""

    def __init__(self, flag: Path | None) -> None:
        self._flag = flag
        self._signalled: float | None = None

    def signalled(self, number: int, frame: FrameType | None) -> None:
        """Signal handler; a signal that comes later ends the process, so that a person can insist."""
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
        elif now - self._signalled > protocol.ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def __bool__(self) -> bool:
        return self._signalled is not None or (self._flag is not None and self._flag.exists())


@contextmanager
def watch(environ: Mapping[str, str] = os.environ) -> Iterator[StopRequest]:
    """Listens for SIGTERM, SIGINT and the launcher's flag file (SDJOB_STOP_FILE)."""
    path = environ.get("SDJOB_STOP_FILE")
    request = StopRequest(Path(path) if path else None)
    before = {number: signal.signal(number, request.signalled) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(Exception):
    """The run was asked to stop; what it had done is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step
