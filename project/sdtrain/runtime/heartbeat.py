"""Signs of life for the launcher: heartbeats, and stacks on request."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import psutil

from sdjob import protocol
from sdjob.protocol import STACKS_SIGNAL, Heartbeat
from sdtrain.runtime.exit_note import rank

_SECONDS_BETWEEN_BEATS = 1.0  # the file may be on slow storage
_SECONDS_BETWEEN_LOOKS = 2.0
# Between two looks: what a process that waits, with its idle threads and these looks, stays far below.
_CPU_SECONDS, _BYTES = 0.05, 1 << 16


@contextlib.contextmanager
def announced(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """While the body runs, the launcher knows this process and can ask it for its stacks.

    Does nothing without a launcher, or where its folder cannot be written.
    """
    notes = protocol.notes_folder(environ)
    if notes is None:
        yield
        return
    try:
        Heartbeat(os.getpid(), "start").write(notes, rank(environ))
        stacks = protocol.open_stacks(notes, rank(environ))
    except OSError:
        yield
        return
    with stacks:
        faulthandler.register(STACKS_SIGNAL, file=stacks)
        try:
            yield
        finally:
            faulthandler.unregister(STACKS_SIGNAL)


class Pulse:
    """Sends heartbeats of a stage, at most one per second and the last one; to be called on any progress."""

    def __init__(self, stage: str, environ: Mapping[str, str] = os.environ) -> None:
        self._stage, self._rank = stage, rank(environ)
        self._notes = protocol.notes_folder(environ)
        self._last = -_SECONDS_BETWEEN_BEATS

    def __call__(
        self,
        step: int | None = None,
        done: int | None = None,
        total: int | None = None,
        seconds_left: float | None = None,
        note: str = "",
    ) -> None:
        """`step`: the last optimizer step; None: unchanged. For the others see `Heartbeat`."""
        now = time.monotonic()
        is_last = done is not None and done == total
        if self._notes is None or (now - self._last < _SECONDS_BETWEEN_BEATS and not is_last):
            return
        self._last = now
        with contextlib.suppress(OSError):
            before = Heartbeat.read(self._notes, self._rank) or Heartbeat(os.getpid(), self._stage)
            last = before.step if step is None else step
            beat = Heartbeat(before.pid, self._stage, last, done, total, seconds_left, note)
            beat.write(self._notes, self._rank)


def name(stage: str) -> None:
    """Name a stage in the log, on rank 0."""
    if rank(os.environ) == 0:
        print(protocol.progress_line(stage), flush=True)


@contextlib.contextmanager
def working(
    stage: str, *, children: bool = False, shown: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """While the body runs, which seldom reports progress, send heartbeats as long as this process computes or reads,
    or with `children` one of those that it has started. Yields a function that takes how much is done, of how much.

    For imports, files and loading only: a process that waits for a device or for other ranks may compute, too.
    `shown`: the log of rank 0 names the stage.
    """
    if shown:
        name(stage)
    if protocol.notes_folder(os.environ) is None:
        yield lambda done, total: None
        return
    pulse, ended = Pulse(stage), threading.Event()
    counted: tuple[int | None, int | None] = None, None

    def count(done: int, total: int) -> None:
        nonlocal counted
        counted = done, total

    def look() -> None:
        before = _work(children)
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            now = _work(children)
            if now[0] - before[0] > _CPU_SECONDS or now[1] - before[1] > _BYTES:
                pulse(None, *counted)
            before = now

    pulse()
    thread = threading.Thread(target=look, name="signs of life", daemon=True)
    thread.start()
    try:
        yield count
    finally:
        ended.set()
        thread.join()


def _work(children: bool) -> tuple[float, int]:
    """CPU seconds of all threads, and bytes read and written, where the system counts them."""
    count, seconds = 0, time.process_time()
    with contextlib.suppress(AttributeError, OSError, psutil.Error):
        files = psutil.Process().io_counters()
        count = files.read_chars + files.read_bytes + files.write_chars
    for child in psutil.Process().children(recursive=True) if children else ():
        with contextlib.suppress(psutil.Error):
            seconds += sum(child.cpu_times()[:2])
    return seconds, count
