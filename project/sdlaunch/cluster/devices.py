"""Devices, cores and memory of this machine, without torch but for a short-lived process where nothing else knows."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from sdjob import failure_patterns
from sdjob.automatic import machine
from sdjob.formatting import counted
from sdjob.problems import Problem, no_hardware
from sdlaunch.cluster import nvml
from sdlaunch.cluster.nvidia import ON_CPU, VISIBLE, Seen, torch_build, unfit, usable
from sdlaunch.timeouts import NoAnswer, Task, ask

_DRIVER_TIMEOUT = 20.0  # seconds; a GPU that fell off the bus may block its driver
# Device nodes of vendors whose devices are used when `device` names them.
_NODES = {
    "npu": r"davinci\d+",
    "mlu": r"cambricon_dev\d+",
    "gcu": r"gcu\d+",
    "musa": r"mtgpu\.\d+",
}
_NVIDIA_NODE = r"nvidia\d+"
_AMD_NODE = r"renderD\d+"  # below /dev/dri, which PyTorch calls cuda; usable for computing where /dev/kfd is there too
# Where the driver has no NVML, or may have none.
_TORCH_KNOWS = {r"dxg": "WSL2", r"nvhost-.+|nvmap": "Jetson"}
_UNSUPPORTED = {
    r"neuron\d+": "AWS Neuron",
    r"hl\d+": "Gaudi",
    r"accel\d+": "accelerator",
    r"iluvatar\d+": "Iluvatar",
}

_QUESTION = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
why = ""
if not count:
    try:
        torch.cuda.init()
    except Exception as error:
        why = str(error).strip().partition("\\n")[0]
print(json.dumps({
    "count": count,
    "bf16": count > 0 and all(torch.cuda.get_device_capability(i)[0] >= 8 for i in range(count)),
    "memory": min((torch.cuda.get_device_properties(i).total_memory for i in range(count)), default=0),
    "why": why,
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
    warnings: tuple[str, ...] = ()
    name: str | None = None  # of the devices, such as "NVIDIA H100 80GB HBM3"; None: not known, or several


def find(
    wanted: str,
    environ: Mapping[str, str],
    root: Path = Path("/"),
    query: Callable[[], nvml.Driver] = nvml.query,
) -> Devices:
    """The devices for `device=wanted`, where the machine shows them. `root`: of /dev, /proc and /sys."""
    cores = usable_cores()
    if wanted == "cpu":
        return _cpu(cores, "")
    if wanted not in ("auto", "cuda"):
        return Devices(wanted, None, cores, "")
    is_auto = wanted == "auto"
    seen = _nvidia(environ, root, query) or _amd(environ, root) or _sign(root)
    if seen is None or (is_auto and seen.problem and seen.optional):
        return _without_gpu(is_auto, seen, cores, root)
    problems = (seen.problem,) if seen.problem else ()
    why = f"auto: {seen.what}" if is_auto else ""
    return Devices("cuda", seen.count, cores, why, seen.bf16, seen.memory, problems, seen.warnings, seen.name)


def _cpu(cores: int, why: str, problems: tuple[Problem, ...] = (), warnings: tuple[str, ...] = ()) -> Devices:
    return Devices("cpu", cores, cores, why, None, machine.host_memory(), problems, warnings)


def _without_gpu(is_auto: bool, seen: Seen | None, cores: int, root: Path) -> Devices:
    """A machine that shows no GPU, or only one that is not used; other vendors' devices are named."""
    other = next((device for device, node in _NODES.items() if _matching(root / "dev", node)), None)
    if not is_auto:
        found = "cuda, and no NVIDIA device in this machine (no driver library, no device node)"
        if other:
            found = f"cuda, and this machine has {other} devices"
        problem = no_hardware("device", found, f"Use device={other or 'cpu'}, or a GPU machine.")
        return Devices("cuda", 0, cores, "", problems=(problem,))
    if other:
        found = f"auto finds NVIDIA and AMD devices only, and this machine has {other} devices"
        problem = no_hardware("device", found, f"Use device={other}, or device=cpu to train on the CPU.")
        return _cpu(cores, f"auto: {other} devices are not chosen by themselves", (problem,))
    if seen and seen.problem:
        reason = f"{seen.problem.subject}: {seen.problem.found}"
        warning = f"training on the CPU, not on {seen.what}. {reason}. {seen.problem.remedy}"
        return _cpu(cores, f"auto: {seen.what} cannot be used", warnings=(warning,))
    return _cpu(cores, "auto: no accelerator found")


def _nvidia(environ: Mapping[str, str], root: Path, query: Callable[[], nvml.Driver]) -> Seen | None:
    """NVIDIA's devices: from the driver, else from their nodes and torch. None: no sign of any."""
    reason, remedy = "the driver lists no device", ""
    try:
        driver = Task(query).result(time.monotonic() + _DRIVER_TIMEOUT)
        if driver.gpus:
            seen = usable(driver, environ, torch_build())
            return _confirmed(seen, environ, seen.doubt) if seen.doubt else seen
        reason = "; ".join(driver.failed) or reason
    except nvml.Unavailable as error:
        reason, remedy = str(error), error.remedy
    except NoAnswer:
        reason = f"the driver did not answer within {_DRIVER_TIMEOUT:g} s"
        remedy = "Reset the GPU or reboot the host."
    if nodes := _matching(root / "dev", _NVIDIA_NODE):
        visible, seen = _visible(nodes, environ), Seen(counted(nodes, "NVIDIA device"))
        if not visible:
            found = f"{environ[VISIBLE]!r} hides {seen.what}"
            problem = no_hardware(VISIBLE, found, f"Unset {VISIBLE}, {ON_CPU}.")
            return replace(seen, problem=problem, optional=True)
        return _confirmed(replace(seen, count=visible), environ, reason, remedy)
    for node, system in _TORCH_KNOWS.items():
        if _matching(root / "dev", node):
            seen = Seen(f"the GPU of {system}", optional=True)
            return _confirmed(seen, environ, reason, remedy)
    return None


def _amd(environ: Mapping[str, str], root: Path) -> Seen | None:
    nodes = _matching(root / "dev" / "dri", _AMD_NODE)
    if not nodes or not (root / "dev" / "kfd").exists():
        return None
    return _confirmed(Seen(counted(nodes, "AMD device"), nodes, vendor="AMD"), environ, "ROCm lists none")


def _sign(root: Path) -> Seen | None:
    """An accelerator that the machine has and this process cannot reach."""
    what = "an NVIDIA GPU"
    remedy = "Give the container its devices (docker run --gpus all; a limit of nvidia.com/gpu in Kubernetes)"
    if (root / "dev/nvidiactl").exists() or (root / "proc/driver/nvidia/version").exists():
        found = "the host has NVIDIA's driver, and there is no /dev/nvidia0"
    elif _has_pci_gpu(root):
        found, remedy = "it is on the PCI bus, without a driver", f"Install the driver. {remedy}"
    elif (root / "dev/kfd").exists():
        what, found = "an AMD GPU", "there is /dev/kfd, and no /dev/dri/renderD*"
        remedy = "Give the container both (docker run --device=/dev/kfd --device=/dev/dri)"
    else:
        unsupported = (name for node, name in _UNSUPPORTED.items() if _matching(root / "dev", node))
        if not (name := next(unsupported, "")):
            return None
        what, found, remedy = f"the {name} device", "this project does not support it", "Use another machine"
    return Seen(what, problem=no_hardware("device", found, f"{remedy}, {ON_CPU}."), optional=True)


def _has_pci_gpu(root: Path) -> bool:
    """Whether a display or compute controller (class 03) of NVIDIA is on the PCI bus."""
    for device in (root / "sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            is_gpu = (device / "class").read_text().startswith("0x03")
            if is_gpu and (device / "vendor").read_text().strip() == "0x10de":
                return True
    return False


def _confirmed(seen: Seen, environ: Mapping[str, str], reason: str, remedy: str = "") -> Seen:
    """What torch says in a short-lived process, where the driver cannot (`reason`) or its answer is in doubt."""
    if problem := unfit(seen.what, seen.vendor, torch_build()):
        return replace(seen, problem=problem)
    try:
        answer = ask(["-c", _QUESTION], environ, 60)
    except NoAnswer:
        return seen if seen.count else replace(seen, problem=_unusable(seen, reason, remedy))
    if count := answer["count"]:
        vendor = "AMD" if "AMD" in seen.what else "NVIDIA"
        return replace(
            seen,
            what=counted(count, f"{vendor} device"),
            count=count,
            bf16=answer["bf16"],
            memory=answer["memory"] or None,
        )
    hiding = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", VISIBLE)
    hidden = [f"{name}={environ[name]!r} may hide them" for name in hiding if name in environ]
    why = "; ".join(filter(None, [answer.get("why"), reason, *hidden]))
    return replace(seen, problem=_unusable(seen, why, remedy))


def _unusable(seen: Seen, why: str, remedy: str) -> Problem:
    if not remedy:
        known = failure_patterns.find(why)
        build = "ROCm" if seen.vendor == "AMD" else "CUDA"
        remedy = known.remedy if known else f"Install a {build} build of PyTorch that fits the driver."
    remedy = f"{remedy} Or use device=cpu to train on the CPU."
    return no_hardware("device", f"{seen.what} that PyTorch cannot use: {why}", remedy)


def _matching(folder: Path, pattern: str) -> int:
    try:
        return sum(bool(re.fullmatch(pattern, entry.name)) for entry in folder.iterdir())
    except OSError:
        return 0


def _visible(count: int, environ: Mapping[str, str]) -> int:
    """How many of these devices CUDA_VISIBLE_DEVICES leaves, where only their number is known."""
    listed = environ.get(VISIBLE)
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
