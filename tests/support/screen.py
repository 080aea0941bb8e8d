"""What a terminal shows of what is written to it."""

import os
import pty
import re
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fcntl import ioctl
from termios import TIOCSWINSZ
from typing import Any

from sdlaunch.supervise.terminal.terminal import Terminal

_COLORS = re.compile(r"\x1b\[[0-9;]*m")


def of_program(argv: Sequence[str], columns: int = 80, **options: Any) -> tuple[int, str]:
    """Run a program in a terminal of so many columns; returns its exit code and all that it wrote."""
    with _opened(columns) as (terminal, written):
        code = subprocess.run(
            argv, stdin=terminal, stdout=terminal, stderr=terminal, **{"timeout": 300, **options}
        ).returncode
    return code, written.decode()


def of_terminal(use: Callable[[Terminal], None], columns: int = 80) -> str:
    """All that was written to a terminal of so many columns while it was in use."""
    with _opened(columns) as (descriptor, written), os.fdopen(os.dup(descriptor), "w") as out:
        terminal = Terminal(out, {"TERM": "xterm"})
        use(terminal)
        terminal.close()
        terminal._out.close()
    return written.decode()


@contextmanager
def _opened(columns: int) -> Iterator[tuple[int, bytearray]]:
    """A terminal, and what has been written to it, which is complete after the body."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written = bytearray()

    def read() -> None:
        try:
            while block := os.read(ours, 1 << 16):
                written.extend(block)
        except OSError:  # nothing has it open any more
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield theirs, written
    finally:
        os.close(theirs)
        reader.join(10)
        os.close(ours)


def lines(written: str) -> list[str]:
    """The lines that stay, without colors."""
    return [line.rpartition("\r\x1b[K")[2] for line in _plain(written).split("\n")]


def frames(written: str) -> list[str]:
    """All lines and what was shown below them for a while, in order, without colors."""
    return [each for each in re.split(r"\n|\r\x1b\[K", _plain(written)) if each]


def _plain(written: str) -> str:
    return _COLORS.sub("", written).replace("\r\n", "\n")
