"""What a child process does before it executes its program."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def ends_with_launcher() -> Callable[[], None]:
    """For `preexec_fn`: the child gets SIGTERM when the thread that starts it dies, however that happens.

    That thread must wait for the child.
    """
    libc, launcher = ctypes.PyDLL(None), os.getpid()

    def prepare() -> None:
        if sys.platform == "linux":
            libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != launcher:  # it has died before the kernel was told
            os._exit(128 + signal.SIGTERM)

    return prepare
