"""How the processes of this node share its cores, and how long they wait for one another."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from sdjob.automatic import Choice
from sdjob.formatting import counted
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.cluster.devices import Devices
from sdlaunch.settings.options import LaunchOptions

_MOST_THREADS = 8  # more do not make the work of a step on the host faster, and get in the way of each other
_AFTER_HANG = 300  # seconds: so that the launcher, which names the rank at fault, is first
_NEVER = 7200  # seconds, where hang_timeout is 0


def lines(
    found: Devices, cluster: Cluster, options: LaunchOptions, environ: Mapping[str, str]
) -> Iterator[str]:
    """Each value with its reason, for the plan."""
    own = environ.get("OMP_NUM_THREADS")
    used = Choice(own, "OMP_NUM_THREADS") if own else threads(found.cores, cluster.nproc_per_node)
    binding = numa_binding(found.type)
    bound = f"bound to NUMA nodes ({binding.reason})" if binding.value else f"not bound ({binding.reason})"
    yield f"processes: threads of each {used.value} ({used.reason}); {bound}"
    if cluster.world_size > 1 and found.type == "cuda":
        limit = device_timeout(options.hang_timeout)
        yield f"waiting: NCCL gives up after {limit.value} s ({limit.reason}), gloo after 2 h"


def threads(cores: int, processes: int) -> Choice:
    """Threads of a process for operations on the CPU (OMP_NUM_THREADS); all cores where it trains on them."""
    fraction = max(1, cores // processes)
    reason = counted(cores, "core") + (f" / {processes} processes" if processes > 1 else "")
    if fraction <= _MOST_THREADS:
        return Choice(str(fraction), reason)
    return Choice(str(_MOST_THREADS), f"{reason}, at most {_MOST_THREADS}")


def numa_binding(device: str, root: Path = Path("/"), torch: Path | None = None) -> Choice:
    """torchrun's --numa-binding, which binds each process to the cores near its GPU; "": not bound.

    `torch`: the folder of PyTorch; None: the installed one.
    """
    if device != "cuda":
        return Choice("", "only next to NVIDIA GPUs")
    if (nodes := _nodes(root)) < 2:
        return Choice("", "the machine is one NUMA node")
    if torch is None:
        spec = find_spec("torch")
        torch = Path(spec.origin).parent if spec and spec.origin else root / "missing"
    if not (torch / "numa/binding.py").is_file():
        return Choice("", "this PyTorch cannot")
    if shutil.which("numactl") is None:
        return Choice("", "numactl is not installed")
    return Choice("node", f"{nodes} NUMA nodes")


def _nodes(root: Path) -> int:
    try:
        entries = [entry.name for entry in (root / "sys/devices/system/node").iterdir()]
    except OSError:
        return 1
    return sum(bool(re.fullmatch(r"node\d+", name)) for name in entries)


def device_timeout(hang_timeout: float) -> Choice:
    """Seconds after which a collective call between devices (NCCL) fails. Calls on the host have their own, long limit:
    ranks also wait there for the lone work of one, which is a sign of life."""
    if not hang_timeout:
        return Choice(str(_NEVER), "hang_timeout=0")
    return Choice(f"{hang_timeout + _AFTER_HANG:.0f}", f"{_AFTER_HANG} s after hang_timeout")
