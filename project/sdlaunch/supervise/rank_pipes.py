"""Reads the output of all ranks of this node, and of torchrun, as lines: one thread, and bounded memory."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdjob import protocol

_BLOCK = 1 << 16  # bytes read at once
_LONGEST = 1 << 16  # bytes of a line; a longer one becomes several
_BETWEEN_PROGRESS = 1.0  # seconds
_LOOK = 0.2  # seconds between two looks whether torchrun has ended
_PATIENCE = 5.0  # seconds for what is left in the pipes then; a process that was not ended may write on
_END = re.compile(rb"\r?\n|\r(?=[^\n])|(?<=[^\n])(?=\0rank )")  # the last: what a crashed process did not end
_PROGRESS = protocol.progress_line("").encode()


@dataclass(frozen=True)
class RankPipes:
    """The named pipes of a node's ranks, open for reading."""

    folder: Path
    descriptors: tuple[int, ...]

    def lines(self, torchrun: int, has_ended: Callable[[], bool]) -> Iterator[tuple[int | None, bytes]]:
        """(rank, line) of all pipes and of torchrun's descriptor (rank None), until it has ended and all is read."""
        os.set_blocking(torchrun, False)
        deadline = float("inf")
        with selectors.DefaultSelector() as selector:
            for descriptor in (torchrun, *self.descriptors):
                selector.register(descriptor, selectors.EVENT_READ, _LineSplitter())
            while time.monotonic() < deadline:
                is_last = has_ended()
                if is_last and deadline == float("inf"):
                    deadline = time.monotonic() + _PATIENCE
                ready = selector.select(0 if is_last else _LOOK)
                if is_last and not ready:
                    break
                for key, _ in ready:
                    if block := _read(key.fd):
                        yield from key.data.lines(block)
                    else:
                        selector.unregister(key.fd)
                        yield from key.data.rest()
            for key in selector.get_map().values():
                yield from key.data.rest()


@contextlib.contextmanager
def opened(folder: Path, count: int) -> Iterator[RankPipes]:
    """Pipes for so many ranks, in a folder that is private to this user. Raises OSError."""
    with contextlib.ExitStack() as stack:
        descriptors = []
        for local_rank in range(count):
            path = protocol.pipe(folder, local_rank)
            os.mkfifo(path, 0o600)
            descriptors.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))  # with a writer it has no end
            stack.callback(os.close, descriptors[-1])
        yield RankPipes(folder, tuple(descriptors))


def _read(descriptor: int) -> bytes:
    """What is there; empty: there will be no more."""
    try:
        return os.read(descriptor, _BLOCK)
    except OSError:
        return b""


class _LineSplitter:
    """Splits the output of one source into lines. Progress bars, which return to the start of a line, are thinned."""

    def __init__(self) -> None:
        self._rank: int | None = None
        self._rest = b""
        self._is_skipping = False  # up to the end of a word that was too long
        self._progress_at = -_BETWEEN_PROGRESS

    def lines(self, block: bytes) -> Iterator[tuple[int | None, bytes]]:
        """The lines that end in this block."""
        data, start = self._rest + block, 0
        for end in _END.finditer(data):
            yield from self._line(data[start : end.start()], is_progress=end[0] == b"\r")
            start = end.end()
        self._rest = data[start:]
        while len(self._rest) > _LONGEST:
            yield from self._cut()

    def rest(self) -> Iterator[tuple[int | None, bytes]]:
        """The last line, which may have no end: the last words of a process."""
        if self._rest:
            yield from self._line(self._rest.rstrip(b"\r"), is_progress=False)
        self._rest = b""

    def _line(self, line: bytes, *, is_progress: bool) -> Iterator[tuple[int | None, bytes]]:
        if self._is_skipping:
            self._is_skipping, (_, _, line) = False, line.partition(b" ")
        if worker := protocol.introduced(line):
            self._rank, attempt = worker
            if attempt:
                yield self._rank, b"==== restart %d ====" % attempt
        elif not is_progress:
            yield self._rank, line
        elif line and time.monotonic() - self._progress_at >= _BETWEEN_PROGRESS:
            self._progress_at = time.monotonic()
            yield self._rank, line + _PROGRESS

    def _cut(self) -> Iterator[tuple[int | None, bytes]]:
        """Cut the unfinished line between words, so that no part of a secret is left that could not be found."""
        space = self._rest.rfind(b" ", 0, _LONGEST)
        if space > 0:
            yield from self._line(self._rest[:space], is_progress=False)
            self._rest = self._rest[space + 1 :]
            return
        if not self._is_skipping:
            yield self._rank, b"(a word of more than %d bytes is left out)" % _LONGEST
        self._rest, self._is_skipping = b"", True
