"""Limits of the machine and the container: shared memory, open files, the port of the rendezvous."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import sys
from pathlib import Path

from sdjob.automatic import example_sizes
from sdjob.formatting import counted, in_units
from sdjob.problems import Problem, no_hardware
from sdjob.settings.run_spec import RunSpec
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.preflight.job import Job

SHM = Path("/dev/shm")
_PREFETCHED = 2  # batches that each loader process prefetches, as PyTorch does by default
_FILES = 256  # open files of a training process without loaders: libraries, devices, logs


def findings(job: Job) -> list[Problem]:
    spec, cluster = job.spec, job.cluster
    return [*proc(), *shared_memory(job), *open_files(spec, cluster), *rendezvous(cluster)]


def proc(root: Path = Path("/proc")) -> list[Problem]:
    """The launcher finds and ends processes by it."""
    if sys.platform != "linux" or (root / "self").exists():
        return []
    return [no_hardware(str(root), "not mounted", f"Mount it: mount -t proc proc {root}")]


def shared_memory(job: Job, shm: Path = SHM) -> list[Problem]:
    """Loader processes pass batches in shared memory, of which a container has 64 MB by default."""
    spec, cluster = job.spec, job.cluster
    workers = spec.dataloader_num_workers
    if not workers or sys.platform != "linux":
        return []
    if not os.access(shm, os.W_OK | os.X_OK):
        found = f"{'cannot be written' if shm.is_dir() else 'does not exist'}; loader processes need it"
        remedy = f"Mount it: mount -t tmpfs -o size=8g tmpfs {shm}, or set dataloader_num_workers=0."
        return [no_hardware(str(shm), found, remedy)]
    batch = example_sizes.batch(spec, job.contents.model, job.topology)
    needed = cluster.nproc_per_node * (workers * _PREFETCHED + 1) * batch
    free = shutil.disk_usage(shm).free
    if needed <= free:
        return []
    return [
        no_hardware(
            str(shm),
            f"{in_units(free)} free, {in_units(needed)} needed: {cluster.nproc_per_node} processes × "
            f"({workers} loaders × {_PREFETCHED} batches + 1) × {in_units(batch)}",
            "Start the container with a larger --shm-size (or --ipc=host), or set dataloader_num_workers=0.",
        )
    ]


def open_files(spec: RunSpec, cluster: Cluster, allowed: int | None = None) -> list[Problem]:
    """Every loader needs pipes and shared memory, every other process a connection."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if allowed is None else allowed
    needed = _FILES + 16 * spec.dataloader_num_workers + 4 * cluster.world_size
    if limit in (resource.RLIM_INFINITY, -1) or needed <= limit:
        return []
    return [
        no_hardware(
            "open files",
            f"a limit of {limit}, and about {needed} needed by {counted(spec.dataloader_num_workers, 'loader')} "
            f"and {counted(cluster.world_size, 'process')}",
            f"Raise it: ulimit -n {max(4096, needed)}, or docker run --ulimit nofile={max(4096, needed)}.",
        )
    ]


def rendezvous(cluster: Cluster) -> list[Problem]:
    """On node 0 of several, the port at which the nodes meet must be free."""
    if cluster.endpoint is None or cluster.node_rank != 0:
        return []
    port = int(cluster.endpoint.rpartition(":")[2])
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            probe.listen()  # two sockets may be bound to one port, but only one may listen
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            return []
        found = "taken by another program" if error.errno == errno.EADDRINUSE else "not allowed for this user"
        return [
            no_hardware(
                "MASTER_PORT",
                f"port {port} is {found}",
                "Set MASTER_PORT to a free port of 1024 or higher, the same on all nodes.",
            )
        ]
    return []
