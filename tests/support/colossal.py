"""Colossal-AI on CPU processes, for tests only: it takes them for CUDA devices."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from sdtrain.runtime import devices


class _Device(str):
    """A device that torch's factory functions take for the CPU, and Colossal-AI's chunks for CUDA."""

    type, index = "cuda", 0


class _Stream:
    def wait_stream(self, stream: Any) -> None: ...
    def synchronize(self) -> None: ...


def install() -> None:
    """Make Colossal-AI treat the CPU as `device=cuda`; call it in each process before training."""
    import sdtrain.strategies.colossalai  # noqa: F401  (imports Colossal-AI as the worker does)

    # isort: split
    from colossalai.accelerator import set_accelerator
    from colossalai.accelerator.cpu_accelerator import CpuAccelerator
    from colossalai.legacy.utils import memory

    class CpuAsCuda(CpuAccelerator):
        def __init__(self) -> None:
            super().__init__()
            self._name = "cuda"

        def get_current_device(self) -> Any:
            return _Device("cpu")

        def current_device(self) -> int:
            return 0

        def device_count(self) -> int:
            return 1

        def synchronize(self, device: Any = None) -> None: ...

        def empty_cache(self) -> None: ...

        def Stream(self, *args: Any, **settings: Any) -> _Stream:  # noqa: N802
            return _Stream()

        def current_stream(self, device: Any = None) -> _Stream:
            return _Stream()

        def stream(self, stream: Any) -> Any:
            return nullcontext()

    set_accelerator(CpuAsCuda())
    # Gemini's memory tracer calls these functions of CUDA directly.
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.reset_peak_memory_stats = lambda *_: None
    torch.cuda.max_memory_allocated = lambda *_: 2**26
    torch.cuda.memory_allocated = lambda *_: 2**26
    memory.colo_device_memory_capacity = lambda device: 2**30
    devices.DEVICE_TYPES["cuda"] = replace(devices.DEVICE_TYPES["cpu"], name="cuda")
    devices._present = lambda kind: True
    devices.device_of = lambda kind, local_rank: torch.device("cpu")
    devices.has_bf16 = lambda kind: True
