"""The page of a run, kept up to date by a thread of the first node's launcher: training never waits for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjob import reading
from sdjob.output.layout import OutputLayout
from sdjob.page import page
from sdjob.page.curves import Curves
from sdjob.page.data import Alive, collect
from sdjob.protocol import TRAINING, Channel, Heartbeat
from sdlaunch.timeouts import NoAnswer, Task

_LOOK = 2.0  # seconds between two looks at the heartbeat: a new stage is shown at once
_DATA, _PAGE = (
    10.0,
    60.0,
)  # seconds between two writes at least, of the data and of the page that holds them too
_LOAD = 50  # a write is followed by a pause of so many times its own duration
_PATIENCE = 5.0  # seconds for an output folder that may not answer


class LivePage:
    """Writes report.html and its data while the body runs, and once more by `end`; a failing folder is left alone."""

    def __init__(self, layout: OutputLayout, channel: Channel) -> None:
        self._layout, self._channel = layout, channel
        self._curves = Curves(layout.metrics)
        self._alive = Alive("start", time.time())
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._total: int | None = None  # steps, once the training has begun
        self._old_report = _identity(layout.report)
        self._page_at = self._data_at = self._pause = 0.0

    def __enter__(self) -> LivePage:
        threading.Thread(target=self._work, name="page", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def end(self, ended: str, failure: Mapping[str, Any] | None = None) -> None:
        """Write the last page: how the run ended, from report.json, `failure` or, without either, `ended`."""
        self._ended.set()

        def write() -> None:
            with self._writing, contextlib.suppress(OSError):
                data = collect(self._layout, self._curves, failure=failure, ended=ended)
                page.write(self._layout, {**data, "total": data["total"] or self._total})

        with contextlib.suppress(NoAnswer):
            Task(write).result(time.monotonic() + _PATIENCE)

    def _work(self) -> None:
        while True:
            changed = self._look()
            now = time.monotonic()
            if changed or now - self._data_at >= max(_DATA, self._pause):
                with self._writing, contextlib.suppress(OSError):
                    if not self._ended.is_set():
                        self._write(whole=changed or now - self._page_at >= _PAGE)
                self._data_at = time.monotonic()
                self._pause = _LOAD * (self._data_at - now)
            if self._ended.wait(_LOOK):
                return

    def _look(self) -> bool:
        """Look at the first rank; whether it has gone to another stage."""
        beat = Heartbeat.read(self._channel.notes, 0)
        before = self._alive
        if beat is None:
            return self._page_at == 0.0
        changed = beat.stage != before.stage
        since = time.time() if changed else before.since
        self._alive = Alive(beat.stage, since, beat.step, beat.done, beat.total)
        if beat.stage == TRAINING and beat.total:
            self._total = beat.total
        return changed or self._page_at == 0.0

    def _write(self, *, whole: bool) -> None:
        """Not after the worker's last page; over that of an earlier run only once training goes on. Raises OSError."""
        layout = self._layout
        report = _identity(layout.report)
        if report and (report != self._old_report or self._total is None):
            return
        data = collect(layout, self._curves, alive=self._alive)
        data["total"] = self._total or data["total"]
        if whole or not layout.page.exists():
            page.write(layout, data)
            self._page_at = time.monotonic()
        else:
            page.write_data(layout, data)


def refused(layout: OutputLayout, plan: Mapping[str, Any]) -> None:
    """The page of a job that is not started: what failed, and the remedy. Raises OSError."""
    failure = reading.json_of(reading.content(layout.failure, reading.MESSAGE))
    page.write(layout, collect(layout, Curves(layout.metrics), failure=failure, plan=plan))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
