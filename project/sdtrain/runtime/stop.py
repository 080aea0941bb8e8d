"""Requests to stop: a signal to this process, or the stop file that the launcher creates."""

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

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._signalled: float | None = None

    def signalled(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. A later second request ends the process at once."""
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
        elif now - self._signalled > protocol.ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def __bool__(self) -> bool:
        return self._signalled is not None or (self._file is not None and self._file.exists())


@contextmanager
def watch(environ: Mapping[str, str] = os.environ) -> Iterator[StopRequest]:
    """Listen for the stop signals of a worker and for the stop file."""
    request = StopRequest(protocol.stop_file(environ))
    before = {number: signal.signal(number, request.signalled) for number in protocol.WORKER_STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(Exception):
    """The run was asked to stop; its progress is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step
