"""What NVIDIA's driver says about its GPUs, through its library: about 30 ms, without torch or a CUDA context.

Every function may be missing from the library of a driver, or fail on a GPU: that field is None then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
FABRIC_IN_PROGRESS = 2  # NVML_GPU_FABRIC_STATE_IN_PROGRESS: the fabric manager has not set up the NVSwitches
_LIBRARY_MISMATCH = 18  # NVML_ERROR_LIB_RM_VERSION_MISMATCH


class Unavailable(Exception):
    """Why the driver cannot be asked, and what to do about it ("": no library, so nothing is known)."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True)
class Unit:
    """A GPU, or a MIG device of one. Memory in bytes."""

    index: int
    name: str | None = None
    uuid: str | None = None
    capability: tuple[int, int] | None = None
    total: int | None = None
    free: int | None = None
    mig: tuple[Unit, ...] | None = None  # the MIG devices of a GPU in MIG mode; None: not in that mode
    is_mig: bool = False
    fabric: int | None = None  # state of NVLink's fabric


@dataclass(frozen=True)
class Driver:
    """The driver, and the GPUs that it lists. `failed`: GPUs that it lists and cannot open, with the reason."""

    version: str | None
    cuda: tuple[int, int] | None  # the newest CUDA that it supports
    gpus: tuple[Unit, ...]
    failed: tuple[str, ...] = ()


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Fabric(ctypes.Structure):
    _fields_ = (
        ("cluster", ctypes.c_ubyte * 16),
        ("status", ctypes.c_int),
        ("clique", ctypes.c_uint),
        ("state", ctypes.c_ubyte),
    )


def query(load: Callable[[str], Any] = ctypes.CDLL) -> Driver:
    """Ask the driver; raises Unavailable."""
    try:
        library = load(LIBRARY)
    except OSError:
        raise Unavailable(f"no driver library ({LIBRARY})") from None
    if code := _call(library, "nvmlInit_v2"):
        remedy = (
            "Load the NVIDIA driver on the host, and give the container its devices (docker run --gpus all)."
        )
        if code == _LIBRARY_MISMATCH:
            remedy = "Reboot the host: its driver was updated while the old one was loaded."
        raise Unavailable(f"NVIDIA's driver: {_error(library, code)}", remedy)
    try:
        return _driver(library)
    finally:
        _call(library, "nvmlShutdown")


def _driver(library: Any) -> Driver:
    gpus, failed = [], []
    for index in range(_number(library, "nvmlDeviceGetCount_v2") or 0):
        handle = ctypes.c_void_p()
        if code := _call(
            library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle)
        ):
            failed.append(f"GPU {index}: {_error(library, code)}")
        else:
            gpus.append(_gpu(library, index, handle))
    cuda = _number(library, "nvmlSystemGetCudaDriverVersion_v2")  # 12040: 12.4
    return Driver(
        _text(library, "nvmlSystemGetDriverVersion"),
        (cuda // 1000, cuda % 1000 // 10) if cuda else None,
        tuple(gpus),
        tuple(failed),
    )


def _gpu(library: Any, index: int, handle: ctypes.c_void_p) -> Unit:
    total, free = _memory(library, handle)
    major, minor, mode, pending = (ctypes.c_int() for _ in range(4))
    has_capability = not _call(
        library, "nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor)
    )
    _call(library, "nvmlDeviceGetMigMode", handle, ctypes.byref(mode), ctypes.byref(pending))
    fabric = _Fabric()
    has_fabric = not _call(library, "nvmlDeviceGetGpuFabricInfo", handle, ctypes.byref(fabric))
    capability = (major.value, minor.value) if has_capability else None
    return Unit(
        index,
        _text(library, "nvmlDeviceGetName", handle),
        _text(library, "nvmlDeviceGetUUID", handle),
        capability,
        total,
        free,
        tuple(_mig_devices(library, handle, capability)) if mode.value == 1 else None,
        fabric=int(fabric.state) if has_fabric else None,
    )


def _mig_devices(library: Any, gpu: ctypes.c_void_p, capability: tuple[int, int] | None) -> Iterator[Unit]:
    for index in range(_number(library, "nvmlDeviceGetMaxMigDeviceCount", gpu) or 0):
        handle, at = ctypes.c_void_p(), ctypes.c_uint(index)
        if not _call(library, "nvmlDeviceGetMigDeviceHandleByIndex", gpu, at, ctypes.byref(handle)):
            name, uuid = (_text(library, name, handle) for name in ("nvmlDeviceGetName", "nvmlDeviceGetUUID"))
            yield Unit(index, name, uuid, capability, *_memory(library, handle), is_mig=True)


def _memory(library: Any, handle: ctypes.c_void_p) -> tuple[int | None, int | None]:
    """(total, free)"""
    memory = _Memory()
    if _call(library, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory)):
        return None, None
    return memory.total, memory.free


def _number(library: Any, name: str, *handle: ctypes.c_void_p) -> int | None:
    number = ctypes.c_int()
    return None if _call(library, name, *handle, ctypes.byref(number)) else number.value


def _text(library: Any, name: str, *handle: ctypes.c_void_p) -> str | None:
    buffer = ctypes.create_string_buffer(96)
    failed = _call(library, name, *handle, buffer, ctypes.c_uint(len(buffer)))
    return None if failed else buffer.value.decode(errors="replace")


def _call(library: Any, name: str, *arguments: Any) -> int:
    """NVML's code: 0 for success; 13, as NVML itself says, for a function that is not there."""
    function = getattr(library, name, None)
    return int(function(*arguments)) if function else 13


def _error(library: Any, code: int) -> str:
    """NVML's own words for one of its codes."""
    function = getattr(library, "nvmlErrorString", None)
    if function is None:
        return f"error {code}"
    function.restype = ctypes.c_char_p
    text = function(code)
    return text.decode(errors="replace") if text else f"error {code}"
