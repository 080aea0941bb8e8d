"""One job in one output folder: each node holds the file run/lock-<node> while it supervises.

The file is locked (flock), which the kernel undoes however the holder ends. A network file system may have no
locks, have them on one machine only, or keep the lock of a lost machine. So the holder also renews the time of the
file, and a launcher that cannot rely on the lock waits to see whether that goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from sdjob import reading
from sdjob.formatting import visible
from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError, Problem, bad_output
from sdjob.protocol import Channel
from sdjob.writing import opened
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.supervise import processes

BEAT = 2.0  # seconds between two renewals of the file's time
SILENCE = 10.0  # seconds without one after which a holder on another machine counts as lost
PATIENCE = 45.0  # seconds for the workers of a killed launcher to save and exit
_POLL = 0.1  # seconds
_SHOWN = 100  # characters of a text of others
_LARGEST = 1 << 20  # bytes of a lock file, which has some hundred


@dataclass(frozen=True)
class Holder:
    """Content of a lock file. `job` is the same on all nodes of a job; `machine` in all containers of a machine."""

    job: str
    node: int
    host: str
    machine: str
    pid: int
    since: str

    def __str__(self) -> str:
        host, since = (visible(text[:_SHOWN]) for text in (self.host, self.since))
        return f"on {host} (process {self.pid}, node {self.node}, since {since})"

    def excludes(self, other: Holder) -> bool:
        """Whether both cannot use the folder: unless they are two nodes of one job."""
        return self.job != other.job or self.node == other.node

    @classmethod
    def of_this(cls, cluster: Cluster) -> Holder:
        host = machine = os.uname().nodename
        with contextlib.suppress(OSError):
            machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(
            # Without the address of node 0: some platforms call it localhost on that node.
            job=f"{cluster.nodes} nodes, port {(cluster.endpoint or '').rpartition(':')[2]}",
            node=cluster.node_rank,
            host=host,
            machine=machine,
            pid=os.getpid(),
            since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    @classmethod
    def read(cls, path: Path) -> Holder | None:
        """Opens the file each time, since a network file system shows new content only then."""
        try:
            return reading.typed(cls, reading.json_of(reading.content(path, _LARGEST)))
        except (OSError, ValueError):
            return None


@dataclass(frozen=True)
class Lock:
    """The lock that this node holds; children may inherit the descriptor."""

    path: Path
    descriptor: int
    lost: threading.Event = field(default_factory=threading.Event)  # the folder was removed or replaced

    def is_gone(self) -> bool:
        """Whether the path leads to no file any more, or to another one; a mount that does not answer says neither."""
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self.descriptor))
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@contextlib.contextmanager
def held(layout: OutputLayout, cluster: Cluster, say: Callable[[str], None]) -> Iterator[Lock]:
    """While the body runs, this node holds the folder.

    Waits where that tells a dead holder from a living one, and for ranks that an earlier start has left. Raises
    JobError (73): another job uses the folder; OSError: the file cannot be written.
    """
    me = Holder.of_this(cluster)
    layout.make(layout.run)
    path = layout.lock(cluster.node_rank)
    lock = Lock(path, _acquire(path, me, say))
    ended = threading.Event()
    try:
        start = time.monotonic()
        times = {other: _time_of(other) for other in _others(layout, cluster.node_rank)}
        for other, first in times.items():
            _remove_stale(other, me, say, start, first)  # all of them are waited for at once
        _wait_for_processes(layout, cluster, say)
        threading.Thread(target=_renew, args=(lock, ended), daemon=True).start()
        yield lock
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            if _is_current(path, lock.descriptor):
                path.unlink()
        os.close(lock.descriptor)


def in_use(layout: OutputLayout, cluster: Cluster) -> list[Problem]:
    """The problem of a folder that another job uses, where it can be seen without waiting."""
    me = Holder.of_this(cluster)
    for path in (layout.lock(cluster.node_rank), *_others(layout, cluster.node_rank)):
        with contextlib.suppress(OSError), os.fdopen(opened(path, os.O_RDONLY), "rb") as file:
            holder = Holder.read(path)
            if holder and holder.excludes(me) and _flock(file.fileno(), fcntl.LOCK_SH) is False:
                return [_problem(layout.root, holder)]
    return []


def hosts_of_nodes(layout: OutputLayout, cluster: Cluster) -> dict[int, str]:
    """The nodes of this job that supervise it now, each with the name of its host.

    Their files are compared with this node's own, since the clock of a file server may differ.
    """
    me, own = Holder.of_this(cluster), _time_of(layout.lock(cluster.node_rank)) or 0
    hosts = {}
    for path in _others(layout, cluster.node_rank):
        holder, renewed = Holder.read(path), _time_of(path)
        if holder and not holder.excludes(me) and renewed and own - renewed < SILENCE * 1e9:
            hosts[holder.node] = holder.host
    return hosts


def _others(layout: OutputLayout, node: int) -> list[Path]:
    try:
        paths = sorted(layout.run.glob("lock-*"))
    except PermissionError:  # the check of writing reports a folder that this user may not enter
        return []
    return [path for path in paths if path != layout.lock(node)]


def _acquire(path: Path, me: Holder, say: Callable[[str], None]) -> int:
    """The descriptor of the file, locked where the file system can, with this holder in it."""
    while True:
        descriptor = opened(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _wait_until_free(path, descriptor, me, say, time.monotonic(), _time_of(path)):
                path.unlink(missing_ok=True)
            elif _is_current(path, descriptor) and _sign(path, descriptor, me):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _sign(path: Path, descriptor: int, me: Holder) -> bool:
    """Write this holder; without locks, the second of two that do so at once wins."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(me)).encode(), 0)
    if _flock(descriptor, fcntl.LOCK_EX) is None:
        time.sleep(5 * _POLL)
    return Holder.read(path) == me


def _remove_stale(
    path: Path, me: Holder, say: Callable[[str], None], start: float, first: int | None
) -> None:
    """Remove the file of a node of another job, which must have ended. Raises JobError (73)."""
    try:
        descriptor = opened(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        holder = Holder.read(path)
        if holder and holder.excludes(me):
            _wait_until_free(path, descriptor, me, say, start, first)
            if (now := Holder.read(path)) and now.excludes(me):
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _wait_until_free(
    path: Path, descriptor: int, me: Holder, say: Callable[[str], None], start: float, first: int | None
) -> bool:
    """Wait until no other job can hold the file, whose time was `first` at `start`; False: a lost machine locks it.

    Raises JobError (73) if the holder is alive.
    """
    announced, root = False, path.parent.parent
    while True:
        locked, holder = _flock(descriptor, fcntl.LOCK_EX), Holder.read(path)
        waited = time.monotonic() - start
        if _is_free(locked, holder, me):
            return True
        if holder and _time_of(path) != first and Holder.read(path) == holder:  # it renews the time
            raise JobError(_problem(root, holder))
        if locked is not False and waited > SILENCE:
            return True
        if waited > PATIENCE:
            if holder and holder.machine != me.machine:
                return False
            raise JobError(_problem(root, holder))
        if waited > 1 and holder and not announced:
            announced = True
            say(f"waiting for a job {holder} that may still be ending in {root}")
        time.sleep(_POLL)


def _wait_for_processes(layout: OutputLayout, cluster: Cluster, say: Callable[[str], None]) -> None:
    """Wait for ranks of an earlier start, whose launcher and torchrun were killed. Raises JobError (73)."""
    channel, start, announced = Channel.of_node(layout.run, cluster.node_rank), time.monotonic(), False
    while left := processes.working_for(channel):
        names = ", ".join(str(process.pid) for process in left)
        if time.monotonic() > start + PATIENCE:
            found = f"{layout.root} is in use by processes of an earlier start: {names}"
            remedy = f"Wait for them to end, or end them: kill {names.replace(',', '')}"
            raise JobError(bad_output("OUTPUT_DIR", found, remedy))
        if not announced:
            announced = True
            say(
                f"waiting for processes of an earlier start that may still be saving in {layout.root}: {names}"
            )
        time.sleep(_POLL)


def _is_free(locked: bool | None, holder: Holder | None, me: Holder) -> bool:
    if holder is None:
        return locked is not False  # otherwise another launcher has just locked it, and is about to write
    if not holder.excludes(me):  # a node of this job has replaced the file with its own
        return True
    return bool(locked) and holder.machine == me.machine  # the kernel of this machine knows all holders


def _flock(descriptor: int, kind: int) -> bool | None:
    """True: locked by us; False: by another process; None: this file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_current(path: Path, descriptor: int) -> bool:
    """Whether the path still leads to the file that was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _time_of(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _renew(lock: Lock, ended: threading.Event) -> None:
    """Renew the time of the file; missed twice it is lost: once, a network mount may lag behind."""
    missed = 0
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(lock.descriptor)
        missed = missed + 1 if lock.is_gone() else 0
        if missed > 1:
            lock.lost.set()


def _problem(root: Path, holder: Holder | None) -> Problem:
    return bad_output(
        "OUTPUT_DIR",
        f"{root} is in use{f' by a job {holder}' if holder else ''}",
        "Wait for that job to end or stop it, or set OUTPUT_DIR to another folder.",
    )
