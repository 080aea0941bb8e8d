"""One job in one output folder: each node holds a file there, run/lock-<node>, while it supervises.

The file is locked (flock), which the kernel undoes however the holder ends. A network file system may know no
such locks, know them on one machine only, or keep that of a machine that was lost. So the holder also renews
the time of the file, and whoever cannot rely on the lock waits to see whether that goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError, Problem, bad_output
from sdlaunch.cluster.resolve import Cluster

BEAT = 2.0  # seconds between two signs of life
SILENCE = 10.0  # seconds without one, after which a holder on another machine is taken for lost
PATIENCE = 45.0  # seconds for the workers of a launcher that was killed to save and end
_LOOK = 0.1  # seconds between two looks


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. `job` is the same on all nodes of one job; `machine` in all containers of a machine."""

    job: str
    node: int
    host: str
    machine: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"on {self.host} (process {self.pid}, node {self.node}, since {self.since})"


def _this(cluster: Cluster) -> Holder:
    # Not the address of node 0: some platforms call it localhost there.
    port = (cluster.endpoint or "").rpartition(":")[2]
    host = os.uname().nodename
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        machine = host
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Holder(
        f"{cluster.nodes} nodes, port {port}",
        cluster.node_rank,
        host,
        machine,
        os.getpid(),
        now,
    )


@contextlib.contextmanager
def held(layout: OutputLayout, cluster: Cluster, say: Callable[[str], None]) -> Iterator[int]:
    """While the body runs, this node holds the folder; gives the descriptor of the lock, which children may keep.

    Waits where that tells a dead holder from a living one. Raises JobError (73): another job is at work;
    OSError: the file cannot be written.
    """
    me = _this(cluster)
    layout.run.mkdir(parents=True, exist_ok=True)
    path = _path(layout, cluster.node_rank)
    descriptor = _taken(path, me, say)
    ended = threading.Event()
    try:
        for other in _others(layout, cluster.node_rank):
            _clear(other, me, say)
        threading.Thread(target=_beat, args=(descriptor, ended), daemon=True).start()
        yield descriptor
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            if _is_still(path, descriptor):
                path.unlink()
        os.close(descriptor)


def in_use(layout: OutputLayout, cluster: Cluster) -> list[Problem]:
    """The problem of a folder in which another job is at work, as far as a look without waiting tells."""
    me = _this(cluster)
    for path in (_path(layout, cluster.node_rank), *_others(layout, cluster.node_rank)):
        with contextlib.suppress(OSError), path.open("rb") as file:
            holder = _holder(path)
            if holder and _is_other(holder, me) and _flock(file.fileno(), fcntl.LOCK_SH) is False:
                return [_problem(layout.root, holder)]
    return []


def _path(layout: OutputLayout, node: int) -> Path:
    return layout.run / f"lock-{node}"


def _others(layout: OutputLayout, node: int) -> list[Path]:
    try:
        found = sorted(layout.run.glob("lock-*"))
    except PermissionError:  # a folder that this user may not enter; the check of writing says so
        return []
    return [path for path in found if path != _path(layout, node)]


def _is_other(holder: Holder, me: Holder) -> bool:
    """Not another node of this very job."""
    return holder.job != me.job or holder.node == me.node


def _taken(path: Path, me: Holder, say: Callable[[str], None]) -> int:
    """The descriptor of the file, locked where the file system can, with our name in it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _is_free(path, descriptor, me, say):
                path.unlink(missing_ok=True)
            elif _is_still(path, descriptor) and _signed(path, descriptor, me):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _signed(path: Path, descriptor: int, me: Holder) -> bool:
    """Writes our name; without locks, of two that do so at once the second one has it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(me)).encode(), 0)
    if _flock(descriptor, fcntl.LOCK_EX) is None:
        time.sleep(5 * _LOOK)
    return _holder(path) == me


def _clear(path: Path, me: Holder, say: Callable[[str], None]) -> None:
    """Takes away the file of a node of another job, which must have ended."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        holder = _holder(path)
        if holder and _is_other(holder, me):
            _is_free(path, descriptor, me, say)
            if (now := _holder(path)) and _is_other(now, me):
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_free(path: Path, descriptor: int, me: Holder, say: Callable[[str], None]) -> bool:
    """Waits until nobody can hold the file any more; False: it is locked, by a machine that is lost.

    Raises JobError if a holder shows that it lives.
    """
    begin = time.monotonic()
    first = _time_of(path)
    said = False
    while True:
        locked, holder = _flock(descriptor, fcntl.LOCK_EX), _holder(path)
        waited = time.monotonic() - begin
        if holder is None:
            free = locked is not False  # otherwise somebody has just taken it, and is about to write
        else:
            same = not _is_other(holder, me)  # a node of this job has come to take its own file
            sure = locked and holder.machine == me.machine  # the kernel of this machine knows of no other
            free = same or sure or (locked is not False and waited > SILENCE)
        if free:
            return True
        if holder and _time_of(path) != first and _holder(path) == holder:
            raise JobError(_problem(path.parent.parent, holder))  # it shows that it lives
        if waited > PATIENCE:
            if holder and holder.machine != me.machine:
                return False
            raise JobError(_problem(path.parent.parent, holder))
        if waited > 1 and holder and not said:
            said = True
            say(f"a job {holder} may still be ending in {path.parent.parent}: waiting for that")
        time.sleep(_LOOK)


def _flock(descriptor: int, kind: int) -> bool | None:
    """True: locked by us; False: by somebody else; None: this file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the path leads to the file that was opened, and not to one that took its place."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _holder(path: Path) -> Holder | None:
    """Who wrote the file; it is opened again, since a network file system shows what is new only then."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _time_of(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _problem(root: Path, holder: Holder | None) -> Problem:
    who = f" by a job {holder}" if holder else ""
    return bad_output(
        "OUTPUT_DIR",
        f"{root} is in use{who}",
        "Wait for that job to end or stop it, or set OUTPUT_DIR to another folder.",
    )
