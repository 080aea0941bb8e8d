"""Processes below this one: found through /proc, since every worker of torchrun leads a session of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes workers whose torchrun has died children of this process, so that they can be found and ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> Callable[[], None]:
    """To be called in a child before it becomes another program: it gets SIGTERM when this process dies.

    A launcher that is killed cannot stop anything; torchrun then ends the workers, which save before.
    """
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.PyDLL(None)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def descendants(root: int) -> list[int]:
    """All processes below this one, parents first."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                children[int(_stat(entry)[1])].append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(0), [])
        found += below
        waiting += below
    return found


def reap_orphans(keep: int) -> None:
    """Takes the exit status of adopted processes that have ended, as PID 1 must; never that of `keep`."""
    with contextlib.suppress(ChildProcessError):  # no children at all
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == keep:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)


def state(pid: int) -> str:
    """The state of a process in words."""
    try:
        letter = _stat(Path(f"/proc/{pid}"))[0]
    except OSError:
        return "it has ended"
    words = {"T": "it is stopped", "D": "it waits for a device or a mount", "Z": "it has ended"}
    return words.get(letter, f"its state is {letter}")


def kill_all(child: int, patience: float = 2.0) -> None:
    """Kills everything below this process, and takes the exit status of all but `child`, which has a keeper.

    Repeated until nothing is left, since a process may start another one meanwhile.
    """
    until = time.monotonic() + patience
    while below := [pid for pid in descendants(os.getpid()) if not _is_zombie(pid) or pid != child]:
        for pid in below:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in below:
            if pid != child:
                with contextlib.suppress(ChildProcessError):  # somebody else's child
                    os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > until:  # a process in the kernel's hands cannot be killed: not waited for
            return
        time.sleep(0.01)


def _is_zombie(pid: int) -> bool:
    try:
        return _stat(Path(f"/proc/{pid}"))[0] == "Z"
    except OSError:
        return True


def _stat(folder: Path) -> list[str]:
    """State, parent, … of a process: what follows its name, which is in parentheses and may hold spaces."""
    return (folder / "stat").read_text().rpartition(")")[2].split()
