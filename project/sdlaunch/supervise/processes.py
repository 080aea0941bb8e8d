"""Processes below this one: adopted, examined and ended; torchrun starts each worker in a new session.

psutil walks and reads them; what it does not offer stays here: prctl, and the kernel's count of processes killed for
memory in this container.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from sdjob.children.start import ending_with_this
from sdjob.protocol import Channel

_PR_SET_CHILD_SUBREAPER = 36
_IGNORED = (signal.SIGUSR1, signal.SIGUSR2)  # by torchrun
_STATES = {
    psutil.STATUS_STOPPED: "it is stopped",
    psutil.STATUS_DISK_SLEEP: "it waits for a device or a mount",
    psutil.STATUS_ZOMBIE: "it has ended",
}


def adopt_orphans() -> None:
    """Make workers whose torchrun has died children of this process, so that they can be found and ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start_torchrun(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start torchrun; the calling thread must wait for it. Raises OSError.

    It gets SIGTERM when that thread dies: a launcher that is killed cannot stop anything; torchrun then ends the
    workers, which save first. It ignores what torchrun would die of without ending the workers: a scheduler may signal
    all processes of a job, and the launcher takes that for all of them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)  # for the child, until it ignores them
    try:
        return subprocess.Popen(ending_with_this(argv, ignored=_IGNORED), **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def working_for(channel: Channel) -> list[psutil.Process]:
    """All processes of this machine, torchrun and ranks, that an earlier start with this channel has left."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # ended meanwhile, or of another user
            if channel.belongs_to(process.environ()):
                found.append(process)
    return found


def descendants() -> list[psutil.Process]:
    """All processes below this one, parents first."""
    return list(psutil.Process().children(recursive=True))


def has_children(pid: int) -> bool:
    """Whether a process has any child that runs."""
    try:
        return any(each.status() != psutil.STATUS_ZOMBIE for each in psutil.Process(pid).children())
    except psutil.Error:  # one of them has just ended
        return True


def reap_orphans(keep: int) -> None:
    """Take the exit status of adopted processes that have ended, as PID 1 must; never that of `keep`."""
    with contextlib.suppress(ChildProcessError):  # no children at all
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == keep:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)


def state(pid: int) -> str:
    """The state of a process in words."""
    status = _status(pid)
    return _STATES.get(status, f"its state is {status}")


def _status(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:
        return str(psutil.STATUS_ZOMBIE)


def kill_all(child: int, patience: float = 2.0) -> None:
    """Kill every process below this one, and take the exit status of all but `child`, whose caller does so.

    Repeated until none is left, since a process may start another one meanwhile.
    """
    until = time.monotonic() + patience
    while below := [
        each for each in descendants() if each.pid != child or _status(child) != psutil.STATUS_ZOMBIE
    ]:
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for process in below:
            if process.pid != child:
                with contextlib.suppress(ChildProcessError):  # the child of another process
                    os.waitpid(process.pid, os.WNOHANG)
        if time.monotonic() > until:  # a process that waits in the kernel cannot be killed
            return
        time.sleep(0.01)


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has killed for memory in this container, where it tells."""
    for path in _counters(root):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(dict(line.split() for line in path.read_text().splitlines())["oom_kill"])
    return 0


def _counters(root: Path) -> Iterator[Path]:
    """Files with that count: of this process's own group; in a container that group is the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if not controllers:
            yield root / f"sys/fs/cgroup{group}/memory.events"
        elif controllers == "memory":
            yield root / f"sys/fs/cgroup/memory{group}/memory.oom_control"
    yield root / "sys/fs/cgroup/memory.events"
    yield root / "sys/fs/cgroup/memory/memory.oom_control"
