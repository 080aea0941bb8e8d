"""Programs that end with the process that starts them: this file runs first, sets their limits, and becomes them.

Popen's `preexec_fn` would run between fork and exec, where a process with threads of libraries may hang or crash.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterable, Sequence

_PR_SET_PDEATHSIG = 1


def ending_with_this(
    argv: Sequence[str],
    number: int = signal.SIGTERM,
    memory: int | None = None,
    ignored: Iterable[signal.Signals] = (),
) -> list[str]:
    """The command of a program that gets this signal when the thread that starts it dies, however that happens.

    That thread must wait for the program. `memory`: bytes that it and its children may take, each.
    """
    limits = (os.getpid(), int(number), memory or 0, ",".join(str(int(each)) for each in ignored))
    return [sys.executable, "-I", "-S", __file__, *map(str, limits), *argv]


def limit_memory(count: int) -> None:
    """From here on this process gets no more memory than these bytes, files that are mapped not counted."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))


def end_with(parent: int, number: int) -> None:
    """This process gets the signal when the thread that has started it dies; it ends if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + number)


def main() -> None:
    """Become the program. It exits with 127 if it cannot be started."""
    parent, number, memory = map(int, sys.argv[1:4])
    end_with(parent, number)
    if memory:
        limit_memory(memory)
    ignored = {signal.Signals(int(each)) for each in filter(None, sys.argv[4].split(","))}
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)
    for each in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and programs do not expect
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)  # blocked meanwhile by who starts it
    argv = sys.argv[5:]
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        raise SystemExit(127) from None


if __name__ == "__main__":
    main()
