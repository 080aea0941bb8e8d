"""Copies on the host for saving in the background: in memory that is allocated once, and while the next step runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from sdtrain.checkpoint.state_io import Tables


class Staging:
    """Host memory for the tables of a checkpoint. Copies from an NVIDIA device go to pinned memory on their own stream:
    neither the host nor the next forward pass waits for them, only the next update."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: dict[tuple[str, str], torch.Tensor] = {}
        self._stream: Any = None  # torch.cuda.Stream, and the event at the end of the copies
        self._copied: Any = None

    def copies(self, tables: Tables) -> Tables:
        """Start to copy; what was copied before must not be needed any more."""
        if self._device.type == "cuda":
            new_stream: Any = torch.cuda.Stream
            self._stream = self._stream or new_stream(self._device)
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            found = {
                table: {name: self._copy((table, name), tensor) for name, tensor in tensors.items()}
                for table, tensors in tables.items()
            }
            self._copied = self._stream.record_event() if self._stream else None
        return found

    def _copy(self, key: tuple[str, str], tensor: torch.Tensor) -> torch.Tensor:
        if key not in self._memory:
            pinned = self._stream is not None
            self._memory[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return self._memory[key].copy_(tensor, non_blocking=True)

    def before_change(self) -> None:
        """Call before the tensors change: the device, not the host, waits for the copies."""
        if self._copied is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied)

    def write(self, write: Callable[[Path], None], folder: Path) -> None:
        """Call a function when the copies are complete; in a thread of its own."""
        if self._copied is not None:
            self._copied.synchronize()
        write(folder)
