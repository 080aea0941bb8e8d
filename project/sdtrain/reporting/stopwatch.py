"""What a run costs: its time, and that of all its devices, over all starts."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Spent:
    """Seconds from the start of the worker on, and the same times its processes.

    Of a start that did not end in order, up to its last checkpoint.
    """

    seconds: float = 0.0
    device_seconds: float = 0.0

    def and_this_start(self, processes: int) -> Spent:
        """With what this process has taken so far, as a platform counts it: imports and checks included."""
        seconds = time.time() - psutil.Process().create_time()
        return Spent(self.seconds + seconds, self.device_seconds + seconds * processes)
