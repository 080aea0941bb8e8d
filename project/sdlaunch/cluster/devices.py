"""Which devices this machine has, without torch: device nodes, cores; torch is asked only where GPUs are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdjob.problems import Problem, no_hardware

# Device nodes of one device each. Other vendors' devices are used when `device` names them.
_NODES = {
    "cuda": r"nvidia\d+",
    "npu": r"davinci\d+",
    "mlu": r"cambricon_dev\d+",
    "gcu": r"gcu\d+",
    "musa": r"mtgpu\.\d+",
}
_AMD_NODE = r"renderD\d+"  # below /dev/dri; usable for computing where /dev/kfd is there too

_QUESTION = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps({
    "count": count,
    "bf16": count > 0 and all(torch.cuda.get_device_capability(i)[0] >= 8 for i in range(count)),
    "memory": min((torch.cuda.get_device_properties(i).total_memory for i in range(count)), default=0),
}))
"""


@dataclass(frozen=True)
class Devices:
    """What a job computes on. `count` is None where the launcher cannot count this kind of device."""

    kind: str  # cuda, cpu, or the vendor's name that the user gave
    count: int | None
    cores: int
    why: str  # how the kind was found
    bf16: bool | None = None  # None: not known
    memory: int | None = (
        None  # bytes of the smallest device; of a CPU: of the host, or what the container may have
    )
    problems: tuple[Problem, ...] = ()


def find(wanted: str, environ: Mapping[str, str], dev: Path = Path("/dev")) -> Devices:
    """The devices for `device=wanted`, as far as the machine shows them."""
    cores = usable_cores()
    nvidia = _visible(_count(dev, "cuda"), environ)
    amd = 0 if nvidia else _count_amd(dev)
    other = next((kind for kind in _NODES if kind != "cuda" and _count(dev, kind)), None)
    if wanted == "auto" and not (nvidia or amd) and other:
        problem = no_hardware(
            "device",
            f"auto finds NVIDIA and AMD devices only, and this machine has {other} devices",
            f"Use device={other}, or device=cpu to train on the CPU all the same.",
        )
        why = f"auto: {other} devices not asked for"
        return Devices("cpu", cores, cores, why, memory=host_memory(), problems=(problem,))
    if wanted == "cpu" or (wanted == "auto" and not (nvidia or amd)):
        why = "" if wanted == "cpu" else "auto: no accelerator found"
        return Devices("cpu", cores, cores, why, memory=host_memory())
    if wanted not in ("auto", "cuda"):
        return Devices(wanted, None, cores, "")
    vendor = "NVIDIA" if nvidia else "AMD"
    why = f"auto: {nvidia or amd} {vendor} devices" if wanted == "auto" else ""
    if nvidia or amd:
        return _asked(nvidia or amd, vendor, cores, why)
    problem = no_hardware(
        "device", "cuda, and no NVIDIA device in this machine", "Use device=cpu, or a GPU machine."
    )
    return Devices("cuda", 0, cores, why, problems=(problem,))


def _asked(nodes: int, vendor: str, cores: int, why: str) -> Devices:
    """The devices that torch calls cuda, as it sees them, asked in a process of its own that ends at once."""
    try:
        reply = subprocess.run(
            [sys.executable, "-c", _QUESTION], capture_output=True, text=True, timeout=60, check=True
        )
        seen = json.loads(reply.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return Devices("cuda", nodes, cores, why)  # a missing torch is the packages' check to report
    if not seen["count"]:
        problem = no_hardware(
            "device",
            f"{nodes} {vendor} devices that PyTorch cannot use",
            f"Install a {'CUDA' if vendor == 'NVIDIA' else 'ROCm'} build of PyTorch that fits the driver, or train "
            "on the CPU with device=cpu.",
        )
        return Devices("cuda", nodes, cores, why, problems=(problem,))
    return Devices("cuda", seen["count"], cores, why, seen["bf16"], seen["memory"] or None)


def _count(dev: Path, kind: str) -> int:
    try:
        return sum(bool(re.fullmatch(_NODES[kind], entry.name)) for entry in dev.iterdir())
    except OSError:
        return 0


def _count_amd(dev: Path) -> int:
    """AMD's devices, which PyTorch calls cuda."""
    try:
        nodes = [entry.name for entry in (dev / "dri").iterdir()] if (dev / "kfd").exists() else []
    except OSError:
        return 0
    return sum(bool(re.fullmatch(_AMD_NODE, name)) for name in nodes)


def _visible(count: int, environ: Mapping[str, str]) -> int:
    """CUDA_VISIBLE_DEVICES hides devices: everything from the first invalid entry on."""
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return count
    visible = 0
    for entry in listed.split(","):
        if not entry.strip() or entry.strip().startswith("-"):
            break
        visible += 1
    return min(visible, count)


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the share that the container was given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def host_memory(proc: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this machine has, or that the container may have where that is less; None: not known."""
    known = []
    try:
        total = next(line for line in proc.read_text().splitlines() if line.startswith("MemTotal:"))
        known.append(int(total.split()[1]) * 1024)
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    for limit in (groups / "memory.max", groups / "memory" / "memory.limit_in_bytes"):
        try:
            known.append(int(limit.read_text()))
        except (OSError, ValueError):  # "max": no limit
            continue
    return min(known, default=None)
