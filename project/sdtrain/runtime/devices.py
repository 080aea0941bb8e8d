"""The devices that a run can use: what to import for each, how its processes talk, what it has used."""

from __future__ import annotations

import importlib
import importlib.util
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sdjob.problems import JobError, no_hardware
from sdjob.settings.compatibility import Topology


@dataclass(frozen=True)
class DeviceKind:
    """One row of the table: a name that users type, and what PyTorch needs for it."""

    name: str
    torch_type: str  # torch.device(type)
    backend: str  # torch.distributed backend for tensors on the device
    module: str = ""  # Python package that registers the device with PyTorch

    @property
    def runtime(self) -> Any:
        """torch.cuda, torch.npu, …: the namespace with device_count, synchronize and memory statistics."""
        return getattr(torch, self.torch_type, None)


KINDS: dict[str, DeviceKind] = {
    kind.name: kind
    for kind in (
        DeviceKind("cuda", "cuda", "nccl"),
        DeviceKind("gcu", "gcu", "eccl", "torch_gcu"),
        DeviceKind("npu", "npu", "hccl", "torch_npu"),
        DeviceKind("musa", "musa", "mccl", "torch_musa"),
        DeviceKind("mlu", "mlu", "cncl", "torch_mlu"),
        DeviceKind("xpu", "xpu", "xccl"),
        DeviceKind("mps", "mps", "gloo"),
        DeviceKind("cpu", "cpu", "gloo"),
    )
}


def choose(name: str) -> DeviceKind:
    """The kind that `device` means; "auto": the first of the table that is there. Raises JobError (69)."""
    if name == "auto":
        return next(kind for kind in KINDS.values() if _present(kind))
    if name not in KINDS:
        raise JobError(
            no_hardware("device", f"unknown device {name!r}", f"Use one of: auto, {', '.join(KINDS)}.")
        )
    kind = KINDS[name]
    if not _present(kind):
        package = f" and the package {kind.module}" if kind.module else ""
        raise JobError(
            no_hardware(
                "device",
                f"no {name} device is available",
                f"Use a machine with one{package}, or device=auto.",
            )
        )
    return kind


def device_of(kind: DeviceKind, local_rank: int) -> torch.device:
    """This process's device, made current."""
    if kind.name in ("cpu", "mps"):
        return torch.device(kind.torch_type)
    count = kind.runtime.device_count()
    if local_rank >= count:
        raise JobError(
            no_hardware(
                "NPROC_PER_NODE",
                f"process {local_rank} needs a {kind.name} device of its own, {count} found",
                f"Use NPROC_PER_NODE={count}.",
            )
        )
    kind.runtime.set_device(local_rank)
    return torch.device(kind.torch_type, local_rank)


def topology(kind: DeviceKind, world_size: int) -> Topology:
    """Where a run is, with what its devices compute in."""
    if kind.name == "cpu":  # in bf16 too for whoever asks for it, at whatever speed
        return Topology(kind.name, world_size)
    return Topology(kind.name, world_size, has_bf16(kind), autocasts(kind, torch.float16))


def has_bf16(kind: DeviceKind) -> bool:
    """Whether the device computes in bf16 at speed."""
    if kind.name == "cpu":
        return False
    if kind.name == "cuda":  # older ones say yes too, and emulate it
        return bool(kind.runtime.get_device_capability() >= (8, 0) or torch.version.hip)
    supported: Callable[[], bool] | None = getattr(kind.runtime, "is_bf16_supported", None)
    return autocasts(kind, torch.bfloat16) and (supported is None or bool(supported()))


def autocasts(kind: DeviceKind, dtype: torch.dtype) -> bool:
    """Whether autocast computes in a type there: PyTorch knows, or asks the vendor's package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns, and goes on in fp32
        try:
            with torch.autocast(kind.torch_type, dtype):
                return bool(torch.is_autocast_enabled(kind.torch_type))
        except (AssertionError, RuntimeError):
            return False


def synchronize(device: torch.device) -> None:
    """Waits for the work that was given to the device; for measuring."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def clock(device: torch.device) -> float:
    """Seconds, read when the device has done all that it was given."""
    synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Largest memory of this process so far, bytes: allocated on the device, or resident on a CPU."""
    measure = getattr(getattr(torch, device.type, None), "max_memory_allocated", None)
    if device.type == "cpu" or measure is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(measure())


def why_absent(kind: DeviceKind) -> str:
    """Why no device of this kind can be used here; empty: one can."""
    if kind.name == "cpu":
        return ""
    if kind.module and importlib.util.find_spec(kind.module) is None:
        return f"the package {kind.module} is not installed"
    try:
        if kind.module:
            importlib.import_module(kind.module)
        available: Callable[[], bool] | None = getattr(kind.runtime, "is_available", None)
        if available and available():
            return ""
    except (ImportError, OSError, RuntimeError) as error:  # a library or a driver that does not fit
        return f"{kind.module or kind.torch_type}: {str(error).splitlines()[0]}"
    if kind.name == "cuda" and not (torch.version.cuda or torch.version.hip):
        return "this build of PyTorch is for CPUs only"
    return "PyTorch finds none"


def _present(kind: DeviceKind) -> bool:
    return not why_absent(kind)
