"""Child processes that run Python: their environment, and their end when the launcher ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdlaunch.python_variables import without_harmful

_PR_SET_PDEATHSIG = 1


def options(environ: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of subprocess.Popen for a child that reads nothing; the thread that starts it must wait for it."""
    return {
        "env": without_harmful(environ),
        "stdin": subprocess.DEVNULL,
        "preexec_fn": ends_with_launcher(),
    }


def python_path(*folders: Path | str | None) -> str:
    """The variable PYTHONPATH with these folders, without those that are None or empty."""
    return os.pathsep.join(str(folder) for folder in folders if folder)


def ends_with_launcher() -> Callable[[], None]:
    """For `preexec_fn`: the child gets SIGTERM when the thread that starts it dies, however that happens.

    That thread must wait for the child.
    """
    libc, launcher = ctypes.PyDLL(None), os.getpid()

    def prepare() -> None:
        if sys.platform == "linux":
            libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != launcher:  # it died before the call
            os._exit(128 + signal.SIGTERM)

    return prepare
