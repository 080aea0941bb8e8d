"""How the processes of this node share its cores, and how long they wait for one another."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from sdjob.automatic import Choice, processes
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.cluster.devices import Devices
from sdlaunch.settings.options import LaunchOptions


def lines(
    found: Devices, cluster: Cluster, options: LaunchOptions, environ: Mapping[str, str]
) -> Iterator[str]:
    """Each value with its reason, for the plan."""
    threads = processes.threads(found.cores, cluster.nproc_per_node)
    if own := environ.get("OMP_NUM_THREADS"):
        threads = Choice(own, "OMP_NUM_THREADS")
    binding = numa_binding(found.type)
    bound = f"bound to NUMA nodes ({binding.reason})" if binding.value else f"not bound ({binding.reason})"
    yield f"processes: threads of each {threads.value} ({threads.reason}); {bound}"
    if cluster.world_size > 1 and found.type == "cuda":
        limit = processes.device_timeout(options.hang_timeout)
        yield f"waiting: NCCL gives up after {limit.value} s ({limit.reason}), gloo after 2 h"


def numa_binding(device: str, root: Path = Path("/"), torch: Path | None = None) -> Choice:
    """How torchrun binds the processes of this node. `torch`: the folder of PyTorch; None: the installed one."""
    if torch is None:
        spec = find_spec("torch")
        torch = Path(spec.origin).parent if spec and spec.origin else root / "missing"
    return processes.numa_binding(
        device,
        _nodes(root),
        torch_binds=(torch / "numa/binding.py").is_file(),
        has_numactl=shutil.which("numactl") is not None,
    )


def _nodes(root: Path) -> int:
    try:
        entries = [entry.name for entry in (root / "sys/devices/system/node").iterdir()]
    except OSError:
        return 1
    return sum(bool(re.fullmatch(r"node\d+", name)) for name in entries)
