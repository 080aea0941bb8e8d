"""Signs of life for the launcher: a file whose time tells of progress, and stacks on request."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_SECONDS_BETWEEN_BEATS = 1.0  # the file may lie on slow storage


@contextlib.contextmanager
def announced(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """While the body runs, alive-<rank> holds this process's id, and SIGUSR1 writes stacks-<rank>.txt.

    Both lie in SDJOB_NOTES_DIR; without a launcher, or where they cannot be written, nothing happens.
    """
    path = _file(environ)
    try:
        if path is None:
            raise FileNotFoundError
        path.write_text(str(os.getpid()))
        stacks = path.with_name(f"stacks-{environ.get('RANK', 0)}.txt").open("w")
    except OSError:
        yield
        return
    with stacks:
        faulthandler.register(signal.SIGUSR1, file=stacks)
        try:
            yield
        finally:
            faulthandler.unregister(signal.SIGUSR1)


class Pulse:
    """Renews the time of alive-<rank>; to be called wherever something has gone forward."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._path = _file(environ)
        self._last = -_SECONDS_BETWEEN_BEATS

    def __call__(self) -> None:
        now = time.monotonic()
        if self._path is not None and now - self._last >= _SECONDS_BETWEEN_BEATS:
            self._last = now
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _file(environ: Mapping[str, str]) -> Path | None:
    folder = environ.get("SDJOB_NOTES_DIR")
    return Path(folder) / f"alive-{environ.get('RANK', 0)}" if folder else None
