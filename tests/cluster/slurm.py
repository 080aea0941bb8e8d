"""A real SLURM of two nodes on this machine, and jobs in it.

Each node of a network has its own slurmd; node0 also runs slurmctld. Configuration, keys, state and logs are in one
folder, and nothing outlives the cluster.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import network
from tests.cluster.network import ADDRESSES, Network

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY")
_CONFIG = """\
ClusterName=test
SlurmctldHost=node0
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire, at least 5 s, is also how long a requeued job waits
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
NodeName=node[0-1] CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; empty: it can."""
    if absent := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"{', '.join(absent)} not found; `make test-cluster` installs SLURM on Debian as root"
    return network.missing()


@dataclass(frozen=True)
class Slurm:
    """A running cluster."""

    folder: Path
    network: Network

    def call(self, *arguments: str, **environ: str) -> str:
        """Run a command of SLURM on node0, in an environment of these variables; returns its output."""
        command = self.network.on_node(
            "node0", "env", "-i", f"PATH={os.environ['PATH']}", *_assigned(environ)
        )
        command += [f"SLURM_CONF={self.folder}/slurm.conf", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: Path, *options: str, **environ: str) -> Job:
        """Submit a script in an environment of these variables; its output is appended to a file next to it."""
        log = script.with_suffix(".log")
        options = (f"--output={log}", f"--chdir={script.parent}", *options)
        number = self.call("sbatch", "--parsable", *options, str(script), **environ)
        return Job(self, number, log)


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    slurm: Slurm
    number: str
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def shown(self, name: str) -> str:
        """A value of `scontrol show job`."""
        text = self.slurm.call("scontrol", "show", "job", "--oneliner", self.number)
        found = re.search(rf"\b{name}=(\S*)", text)
        assert found, text
        return found[1]

    def until(self, text: str, timeout: float = 90) -> None:
        """Wait until the job has printed this."""

        def is_printed() -> bool:
            assert text in self.text or self.shown("JobState") not in ENDED, self.text
            return text in self.text

        _until(is_printed, timeout, lambda: f"{text!r} never came:\n{self.text}")

    def end(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for the end; returns the state and the exit code, as in ("FAILED", "75:0")."""
        _until(lambda: self.shown("JobState") in ENDED, timeout, lambda: self.text)
        return self.shown("JobState"), self.shown("ExitCode")


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """A cluster with its files in this folder. Afterwards all of its processes have ended."""
    with contextlib.ExitStack() as stack:
        slurm = Slurm(folder, stack.enter_context(network.started(folder)))
        _configure(slurm)
        config = ("-D", "-f", str(folder / "slurm.conf"))
        for command in (
            _munged(folder),
            slurm.network.on_node("node0", "slurmctld", *config),
            *(slurm.network.on_node(name, "slurmd", "-N", name, *config) for name in ADDRESSES),
        ):
            stack.enter_context(_daemon(command, folder / "daemons.log"))
        _until(lambda: _are_idle(slurm), 30, (folder / "daemons.log").read_text)
        yield slurm


def _configure(slurm: Slurm) -> None:
    """Write everything that the daemons read."""
    folder = slurm.folder
    for name in ("state", *ADDRESSES):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(_CONFIG.format(folder=folder))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # loaded, and used by none of the plugins
    # Devices that every machine has; SLURM opens none of them.
    devices = "".join(f"NodeName=node[0-1] Name=gpu File=/dev/{name}\n" for name in ("zero", "full"))
    (folder / "gres.conf").write_text(devices)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))


def _munged(folder: Path) -> list[str]:
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
    return ["munged", "--foreground", "--force", *(f"--{o}={folder}/munge.{f}" for o, f in files.items())]


@contextlib.contextmanager
def _daemon(command: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("a") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _are_idle(slurm: Slurm) -> bool:
    try:
        return slurm.call("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle"] * len(ADDRESSES)
    except AssertionError:  # the controller does not answer yet
        return False


def _until(condition: Callable[[], bool], timeout: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.3)


def _assigned(environ: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environ.items()]
