"""Devices, cores and memory of this machine, without torch but for a short-lived process where GPUs are."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from sdjob.problems import Problem, no_hardware
from sdlaunch.timeouts import NoAnswer, ask

# Device nodes of one device each. Other vendors' devices are used when `device` names them.
_NODES = {
    "cuda": r"nvidia\d+",
    "npu": r"davinci\d+",
    "mlu": r"cambricon_dev\d+",
    "gcu": r"gcu\d+",
    "musa": r"mtgpu\.\d+",
}
_AMD_NODE = r"renderD\d+"  # below /dev/dri, which PyTorch calls cuda; usable for computing where /dev/kfd is there too

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
    """What a job computes on. `count` is None where the launcher cannot count devices of this type."""

    type: str  # cuda, cpu, or the vendor's name that the user gave
    count: int | None
    cores: int
    why: str  # how the type was found; "": the user chose it
    bf16: bool | None = None  # None: not known
    memory: int | None = None  # bytes of the smallest device; of a CPU: of the host or the container
    problems: tuple[Problem, ...] = ()


def find(wanted: str, environ: Mapping[str, str], dev: Path = Path("/dev")) -> Devices:
    """The devices for `device=wanted`, as far as the machine shows them."""
    cores = usable_cores()
    if wanted not in ("auto", "cuda", "cpu"):
        return Devices(wanted, None, cores, "")
    nvidia = _visible(_count(dev, "cuda"), environ)
    amd = _matching(dev / "dri", _AMD_NODE) if not nvidia and (dev / "kfd").exists() else 0
    if wanted != "cpu" and (nvidia or amd):
        vendor = "NVIDIA" if nvidia else "AMD"
        why = f"auto: {nvidia or amd} {vendor} devices" if wanted == "auto" else ""
        return _ask_torch(nvidia or amd, vendor, cores, why, environ)
    if wanted == "cuda":
        remedy = "Use device=cpu, or a GPU machine."
        problem = no_hardware("device", "cuda, and no NVIDIA device in this machine", remedy)
        return Devices("cuda", 0, cores, "", problems=(problem,))
    why, problems = "", []
    if wanted == "auto":
        why = "auto: no accelerator found"
        if other := next((each for each in _NODES if each != "cuda" and _count(dev, each)), None):
            why = f"auto: {other} devices are not chosen by themselves"
            found = f"auto finds NVIDIA and AMD devices only, and this machine has {other} devices"
            remedy = f"Use device={other}, or device=cpu to train on the CPU."
            problems = [no_hardware("device", found, remedy)]
    return Devices("cpu", cores, cores, why, memory=host_memory(), problems=tuple(problems))


def _ask_torch(nodes: int, vendor: str, cores: int, why: str, environ: Mapping[str, str]) -> Devices:
    """The devices that torch calls cuda, as a short-lived process reports them."""
    try:
        seen = ask(["-c", _QUESTION], environ, 60)
    except NoAnswer:
        return Devices("cuda", nodes, cores, why)  # a missing torch is the packages' check to report
    if seen["count"]:
        return Devices("cuda", seen["count"], cores, why, seen["bf16"], seen["memory"] or None)
    build = "CUDA" if vendor == "NVIDIA" else "ROCm"
    problem = no_hardware(
        "device",
        f"{nodes} {vendor} devices that PyTorch cannot use",
        f"Install a {build} build of PyTorch that fits the driver, or train on the CPU with device=cpu.",
    )
    return Devices("cuda", nodes, cores, why, problems=(problem,))


def _count(dev: Path, device: str) -> int:
    return _matching(dev, _NODES[device])


def _matching(folder: Path, pattern: str) -> int:
    try:
        return sum(bool(re.fullmatch(pattern, entry.name)) for entry in folder.iterdir())
    except OSError:
        return 0


def _visible(count: int, environ: Mapping[str, str]) -> int:
    """CUDA_VISIBLE_DEVICES hides devices: everything from the first invalid entry on."""
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return count
    valid = takewhile(lambda entry: entry and not entry.startswith("-"), map(str.strip, listed.split(",")))
    return min(len(list(valid)), count)


def usable_cores() -> int:
    """Cores that this process may use: its affinity, or the quota of the container where that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def host_memory(cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this machine has, or that the container may have where that is less; None: not known."""
    known = []
    with contextlib.suppress(OSError, ValueError):  # ValueError: not a name on this system
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in (cgroups / "memory.max", cgroups / "memory" / "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max", no limit
            known.append(int(limit.read_text()))
    return min(known, default=None)
