"""Metrics of a run: metrics.jsonl, one line a logged step, and the losses that the step loop keeps."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class StepMetrics:
    """What was measured after a step; None: not measured, or not finite in metrics.jsonl."""

    step: int
    loss: float | None = None  # mean over ranks and batches
    learning_rate: float | None = None
    grad_norm: float | None = None
    epoch: float | None = None
    skipped_steps: int | None = None  # so far, for a non-finite loss
    images_per_second: float | None = None
    peak_memory_gib: float | None = None
    validation_loss: float | None = None
    time: float = field(default_factory=time.time)  # seconds since 1970


class MetricsFile:
    """Appends metrics to metrics.jsonl: training and validation metrics of one step are two lines.

    Each start begins with a line of its first step alone, which supersedes what an earlier start logged after it.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        """`first_step`: 0, or the step of the checkpoint that the run resumes from."""
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
        self._file = path.open("a", encoding="ascii", buffering=1)  # by lines
        if not whole:  # the process before was killed while it wrote
            self._file.write("\n")
        self.log(StepMetrics(first_step))

    def log(self, metrics: StepMetrics) -> None:
        values = {name: value for name, value in asdict(metrics).items() if _is_known(value)}
        self._file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[StepMetrics]:
    """The metrics of each step, in order. A line supersedes those of later steps above it, which a resumed run
    repeats; lines that were cut off are skipped. Without a file: none."""
    steps: dict[int, dict[str, Any]] = {}
    names = {each.name for each in fields(StepMetrics)}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines() if path.exists() else ():
        try:
            values = {name: value for name, value in json.loads(line).items() if name in names}
        except ValueError:
            continue
        while steps and next(reversed(steps)) > values["step"]:
            steps.popitem()
        steps[values["step"]] = {**steps.get(values["step"], {}), **values}
    return [StepMetrics(**values) for values in steps.values()]


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


class RunningMean:
    """An exponential mean without the bias of its first values: single losses of diffusion say little."""

    def __init__(self, decay: float = 0.9) -> None:
        self._decay = decay
        self._sum = self._weight = 0.0

    def add(self, value: float) -> float:
        """Takes in a value; gives the mean with it."""
        self._sum = self._decay * self._sum + (1 - self._decay) * value
        self._weight = self._decay * self._weight + (1 - self._decay)
        return self._sum / self._weight


class Losses:
    """Those of the steps since a state, still on the device, and the mean of the few that were read from it."""

    def __init__(self, device: torch.device, so_far: float | None) -> None:
        """`so_far`: the mean of the steps before, of a run that was resumed."""
        self.sum = torch.zeros((), device=device)  # of the steps since the last state
        self.last = torch.zeros((), device=device)
        self.last_applied = False
        self._mean = RunningMean()
        self.shown = (
            None if so_far is None else self._mean.add(so_far)
        )  # what people see; None: no loss is known

    def add(self, loss: torch.Tensor, *, applied: bool) -> None:
        """Takes in the loss [] of a step, without waiting for it."""
        self.sum += loss
        self.last, self.last_applied = loss, applied

    def logged(self, loss: float) -> None:
        """Takes in the loss of a step that was read from the device anyway."""
        self.shown = self._mean.add(loss)

    def begin_again(self) -> None:
        """After a state that holds the sum so far."""
        self.sum.zero_()
