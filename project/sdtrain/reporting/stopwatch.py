"""Time: of the training steps alone, for the speed, and of all starts of a run, for its cost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import torch
from pydantic import Field

from sdjob.output import starts
from sdjob.output.layout import OutputLayout
from sdtrain.runtime import devices

Seconds = Annotated[float, Field(ge=0, lt=1e15)]  # and no infinity
_CREATED = 19  # field of /proc/PID/stat, after the name: ticks from the start of the machine


class Stopwatch:
    """Measures training steps without the first `skip_steps`, checkpoints and validation."""

    def __init__(self, device: torch.device, skip_steps: int) -> None:
        self._device, self.skip_steps = device, skip_steps
        self._seen = self._steps = 0
        self._seconds = 0.0
        self._since: float | None = None  # None: not running
        self.go_on()

    def step(self) -> None:
        """Count a step; the last skipped one starts the measurement."""
        self._seen += 1
        if self._since is not None:
            self._steps += 1
        else:
            self.go_on()

    def go_on(self) -> None:
        """Run again, unless steps have to be skipped first."""
        if self._seen >= self.skip_steps and self._since is None:
            self._since = devices.clock(self._device)

    def pause(self) -> None:
        if self._since is not None:
            self._seconds += devices.clock(self._device) - self._since
            self._since = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause for work other than training steps; stay paused if it raises."""
        self.pause()
        yield
        self.go_on()

    @property
    def steps_per_second(self) -> float | None:
        """None: no step was measured."""
        running = time.perf_counter() - self._since if self._since is not None else 0.0
        seconds = self._seconds + running
        return self._steps / seconds if self._steps and seconds > 0 else None


@dataclass(frozen=True)
class Spent:
    """Wall-clock and device seconds, summed over all starts of the run, and the time of this sum (starts.now).

    What a start did after its last checkpoint is known from the launcher's record, up to its last sign of life.
    """

    seconds: Seconds = 0.0
    device_seconds: Seconds = 0.0
    at: Seconds | None = None

    def and_this_start(self, processes: int, at: float | None = None) -> Spent:
        """With the time since this process was created, as a platform bills it: imports and checks included."""
        seconds = _age()
        return Spent(self.seconds + seconds, self.device_seconds + seconds * processes, at)

    def and_unsaved(self, layout: OutputLayout) -> Spent:
        """With what earlier starts spent after this was saved, or if nothing was saved, before this start."""
        begun = starts.now(layout) - _age()
        seconds, device_seconds = starts.unsaved(starts.read(layout), self.at, begun)
        return Spent(self.seconds + seconds, self.device_seconds + device_seconds, self.at)


def _age() -> float:
    """Seconds since this process was created, by a clock that cannot be set where the system has one."""
    if sys.platform != "linux":
        return time.time() - psutil.Process().create_time()
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # a name may hold spaces
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_CREATED]) / os.sysconf("SC_CLK_TCK")
