"""Standard output and error of a rank, sent to the launcher: `python -m sdjob.rank_output SCRIPT …` runs a script so.

Through a pipe and not through torchrun, which first writes to files what it passes on, with the secrets in it. A pipe
belongs to the kernel: what a process writes before it crashes is read, whatever part of the process wrote it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Mapping

from sdjob import protocol

_CAPACITY = 1 << 20  # bytes, the most that Linux grants without privileges


def attach(environ: Mapping[str, str] = os.environ) -> None:
    """Send output to the launcher from here on. Without one, or if it is gone, output stays where it is."""
    path = protocol.own_pipe(environ)
    if path is None:
        return
    rank, attempt = (int(environ.get(name) or 0) for name in ("RANK", "TORCHELASTIC_RESTART_COUNT"))
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # fails where no process reads
        # With a reader in itself a rank is not ended by a broken pipe: it saves when its launcher is gone.
        descriptor = os.open(path, os.O_RDWR)
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _CAPACITY)
        os.write(descriptor, protocol.introduction(rank, attempt))
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.close(descriptor)


def main(words: list[str]) -> None:
    """Become Python with these arguments, which imports from the folder of its script."""
    attach()
    ours = protocol.SAFE_PATH.items()
    environ = {name: value for name, value in os.environ.items() if (name, value) not in ours}
    os.execve(sys.executable, [sys.executable, *words], environ)


if __name__ == "__main__":
    main(sys.argv[1:])
