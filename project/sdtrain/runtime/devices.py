"""The types of devices: packages to import, communication backends, bf16, memory statistics."""

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
class DeviceType:
    """A device type by the name that users give, and what PyTorch needs for it."""

    name: str
    torch_type: str  # torch.device(type)
    backend: str  # torch.distributed backend for tensors on the device
    module: str = ""  # Python package that registers the device with PyTorch

    @property
    def runtime(self) -> Any:
        """torch.cuda, torch.npu, …: the namespace with device_count, synchronize and memory statistics."""
        return getattr(torch, self.torch_type, None)


_TYPES = (
    DeviceType("cuda", "cuda", "nccl"),
    DeviceType("gcu", "gcu", "eccl", "torch_gcu"),
    DeviceType("npu", "npu", "hccl", "torch_npu"),
    DeviceType("musa", "musa", "mccl", "torch_musa"),
    DeviceType("mlu", "mlu", "cncl", "torch_mlu"),
    DeviceType("xpu", "xpu", "xccl"),
    DeviceType("mps", "mps", "gloo"),
    DeviceType("cpu", "cpu", "gloo"),
)
DEVICE_TYPES = {each.name: each for each in _TYPES}
CHANNELS_LAST = ("cpu",)  # whose convolutions are faster in this layout; on CUDA GroupNorm undoes it


def choose(name: str) -> DeviceType:
    """The type that `device` names; "auto": the first available one of the table. Raises JobError (69)."""
    if name == "auto":
        return next(each for each in DEVICE_TYPES.values() if not why_absent(each))
    if name not in DEVICE_TYPES:
        remedy = f"Use one of: auto, {', '.join(DEVICE_TYPES)}."
        raise JobError(no_hardware("device", f"unknown device {name!r}", remedy))
    device_type = DEVICE_TYPES[name]
    if why_absent(device_type):
        package = f" and the package {device_type.module}" if device_type.module else ""
        remedy = f"Use a machine with one{package}, or device=auto."
        raise JobError(no_hardware("device", f"no {name} device is available", remedy))
    return device_type


def device_of(device_type: DeviceType, local_rank: int) -> torch.device:
    """This process's device, made the current one. Raises JobError (69)."""
    if device_type.name in ("cpu", "mps"):
        return torch.device(device_type.torch_type)
    count = device_type.runtime.device_count()
    if local_rank >= count:
        found = f"process {local_rank} needs its own {device_type.name} device, {count} found"
        raise JobError(no_hardware("NPROC_PER_NODE", found, f"Use NPROC_PER_NODE={count}."))
    device_type.runtime.set_device(local_rank)
    return torch.device(device_type.torch_type, local_rank)


def count(device_type: DeviceType) -> int:
    """How many processes can have a device of their own; a CPU is one device."""
    return 1 if device_type.name in ("cpu", "mps") else int(device_type.runtime.device_count())


def topology(device_type: DeviceType, world_size: int) -> Topology:
    """The devices of a run, and the precisions that they support."""
    if device_type.name == "cpu":  # bf16 is possible, but slow on most
        return Topology(device_type.name, world_size)
    has_fp16 = autocasts(device_type, torch.float16)
    return Topology(device_type.name, world_size, has_bf16(device_type), has_fp16)


def has_bf16(device_type: DeviceType) -> bool:
    """Whether bf16 is fast."""
    if device_type.name == "cpu":
        return False
    if device_type.name == "cuda":  # PyTorch reports older ones too, which emulate it
        return bool(device_type.runtime.get_device_capability() >= (8, 0) or torch.version.hip)
    supported: Callable[[], bool] | None = getattr(device_type.runtime, "is_bf16_supported", None)
    return autocasts(device_type, torch.bfloat16) and (supported is None or bool(supported()))


def autocasts(device_type: DeviceType, dtype: torch.dtype) -> bool:
    """Whether autocast supports a dtype there; PyTorch asks the vendor's package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns, and computes in fp32
        try:
            with torch.autocast(device_type.torch_type, dtype):
                return bool(torch.is_autocast_enabled(device_type.torch_type))
        except (AssertionError, RuntimeError):
            return False


def synchronize(device: torch.device) -> None:
    """Wait for all queued work, before measuring."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def clock(device: torch.device) -> float:
    """The time when the device has finished all queued work, seconds."""
    synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process, bytes: allocated on the device, or resident on a CPU."""
    measure = getattr(getattr(torch, device.type, None), "max_memory_allocated", None)
    if device.type == "cpu" or measure is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(measure())


def release_cache(device: torch.device) -> None:
    """Return memory that PyTorch keeps for later to the device, where it keeps any."""
    release = getattr(getattr(torch, device.type, None), "empty_cache", None)
    if release is not None:
        release()


def why_absent(device_type: DeviceType) -> str:
    """Why no device of this type can be used here; empty: one can."""
    if device_type.name == "cpu":
        return ""
    if device_type.module and importlib.util.find_spec(device_type.module) is None:
        return f"the package {device_type.module} is not installed"
    try:
        if device_type.module:
            importlib.import_module(device_type.module)
        available: Callable[[], bool] | None = getattr(device_type.runtime, "is_available", None)
        if available and available():
            return ""
    except (ImportError, OSError, RuntimeError) as error:  # an incompatible library or driver
        return f"{device_type.module or device_type.torch_type}: {str(error).splitlines()[0]}"
    if device_type.name == "cuda" and not (torch.version.cuda or torch.version.hip):
        return "this build of PyTorch is for CPUs only"
    return "PyTorch finds none"
