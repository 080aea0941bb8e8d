"""Requests to stop: a signal to this process, the stop file that the launcher creates, or the loss of its parents."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from sdjob import protocol
from sdjob.exit_codes import ExitCode
from sdtrain.runtime.parents import Parents

if TYPE_CHECKING:
    from sdtrain.runtime.distributed import World  # which imports torch, too slow for a start that is refused

_LOOK = 1.0  # seconds between two looks at the parents
_LONG_STEP = 1.0  # seconds


class StopRequest:
    """Whether this process was asked to stop; the ranks agree on it at a step boundary."""

    def __init__(self, file: Path | None, parents: Parents | None = None) -> None:
        self._file, self._parents = file, parents
        self._received: list[tuple[int, float]] = []  # signals, and their monotonic times

    def signalled(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. A repeated SIGINT ends the process at once."""
        self._received.append((number, time.monotonic()))
        if protocol.insists(self._received):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While the body runs a stop signal ends this process: nothing is to be saved yet, and a wait in C++ for a rank
        that may be gone calls no handler. Raises Stopped for a request that came earlier."""
        before = {number: signal.signal(number, signal.SIG_DFL) for number in protocol.STOP_SIGNALS}
        try:
            if self:
                raise Stopped(0)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __bool__(self) -> bool:
        return (
            bool(self._received)
            or (self._file is not None and self._file.exists())
            or (self._parents is not None and self._parents.gone())
        )


@contextmanager
def watch(environ: Mapping[str, str] = os.environ, parents: Parents | None = None) -> Iterator[StopRequest]:
    """Listen for stop signals and the stop file, and look whether the parents are alive."""
    request, ended = StopRequest(protocol.stop_file(environ), parents), threading.Event()
    before = {number: signal.signal(number, request.signalled) for number in protocol.STOP_SIGNALS}
    if parents:
        threading.Thread(target=_end_without, args=(parents, ended), daemon=True).start()
    try:
        yield request
    finally:
        ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_without(parents: Parents, ended: threading.Event) -> None:
    """End the process some time after its parents if it waits forever for a rank that is gone too."""
    while not ended.wait(_LOOK):
        if parents.gone():
            if not ended.wait(parents.grace):
                os._exit(ExitCode.STOPPED)
            return


class StopVote:
    """Whether the ranks stop after a step.

    They ask in one step and read the answer in the next, so that no step waits for the network. Where a step takes so
    long that this would cost more of the time to save than it gains, they read it at once, as after the last step.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._answer: Callable[[], tuple[bool, ...]] | None = None
        self._at_once = True  # the same on every rank, since it follows from the answers
        self._asked = time.monotonic()

    def stops(self, wanted: bool, *, is_last: bool) -> bool:
        """Whether a rank wanted to stop: after this step, or after the one before. Collective, once a step."""
        if self._answer is not None and self._read():
            return True
        now = time.monotonic()
        self._answer = self._world.ask(wanted, now - self._asked > _LONG_STEP)
        self._asked = now
        return self._read() if self._at_once or is_last or self._world.size == 1 else False

    def _read(self) -> bool:
        assert self._answer is not None
        stopping, self._at_once = self._answer()
        self._answer = None
        return stopping


class Stopped(Exception):
    """The run was asked to stop; its progress is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step
