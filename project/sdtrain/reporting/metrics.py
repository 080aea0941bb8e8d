"""Metrics of a run: their table, metrics.jsonl with one line per logged step, and the losses that the step loop keeps.

A new metric is a row of StepMetrics and its computation: validation.validate returns those of validation.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sdjob import reading, writing


def _metric(tag: str, chart: str = "") -> Any:
    """A metric that is not always measured: its tag in TensorBoard, and its chart on the page "Custom scalars".

    report.html shows every metric as a curve, and those named validation_… as tiles too.
    """
    return field(default=None, metadata={"tag": tag, "chart": chart})


@dataclass(frozen=True)
class StepMetrics:
    """What was measured after a step; None: not measured, or not finite in metrics.jsonl."""

    step: int
    loss: float | None = _metric("train/loss", "loss")  # mean over ranks and batches
    learning_rate: float | None = _metric("train/learning_rate", "learning rate")
    grad_norm: float | None = _metric("train/grad_norm", "gradient norm")
    epoch: float | None = _metric("train/epoch")
    skipped_steps: int | None = _metric("train/skipped_steps")  # so far, for a non-finite loss
    images_per_second: float | None = _metric("speed/images_per_second", "images per second")
    peak_memory_gib: float | None = _metric("speed/peak_memory_gib", "peak memory, GiB")
    validation_loss: float | None = _metric("validation/loss", "loss")  # of held-out images
    time: float = field(default_factory=time.time)  # seconds since 1970


_METRICS = {each.name: each.metadata for each in fields(StepMetrics) if each.metadata}
_FIELDS = frozenset(each.name for each in fields(StepMetrics))
_LONGEST_LINE = 1 << 16  # bytes
_STEPS = 100_000  # that are read
TAGS: dict[str, str] = {name: row["tag"] for name, row in _METRICS.items()}
VALIDATION = tuple(name for name in _METRICS if name.startswith("validation_"))  # keys of report.json too


def charts() -> dict[str, list[str]]:
    """The tags in each chart of TensorBoard's page "Custom scalars", by its title: what is compared is in one chart."""
    found: dict[str, list[str]] = {}
    for row in _METRICS.values():
        if row["chart"]:
            found.setdefault(row["chart"], []).append(row["tag"])
    return found


class MetricsFile:
    """Appends metrics to metrics.jsonl: training and validation metrics of one step are two lines.

    Each start begins with a line of its first step alone, which supersedes what an earlier start logged after it.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        """`first_step`: 0, or the step of the checkpoint that the run resumes from."""
        writing.make_folder(path.parent, path.parent.parent)
        descriptor = writing.opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        size = os.fstat(descriptor).st_size
        whole = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
        self._file = os.fdopen(descriptor, "w", encoding="ascii", buffering=1)  # by lines
        if not whole:  # the process before was killed while it wrote
            self._file.write("\n")
        self.log(StepMetrics(first_step))

    def log(self, metrics: StepMetrics) -> None:
        values = {name: value for name, value in asdict(metrics).items() if _is_known(value)}
        self._file.write(json.dumps(values) + "\n")

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        """The file holds numbers alone."""

    def text(self, tag: str, text: str) -> None:
        """The file holds numbers alone."""

    def flush(self) -> None:
        """Each line is written at once; from here on also a power cut leaves it."""
        self._file.flush()
        os.fsync(self._file.fileno())  # not by its name, which may be another file's by now

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[StepMetrics]:
    """The metrics of each of the last steps, in order; none without a file.

    A line supersedes those of later steps above it, which a resumed run repeats. Lines that are incomplete, or that no
    run writes, are skipped. Raises OSError.
    """
    if not path.exists():
        return []
    steps: dict[int, dict[str, Any]] = {}
    with reading.opened(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - reading.TEXT))
        while line := file.readline(_LONGEST_LINE):
            values = _values_of(line)
            if "step" not in values:
                continue
            step = values["step"]
            while steps and next(reversed(steps)) > step:
                steps.popitem()
            steps[step] = {**steps.get(step, {}), **values}
            if len(steps) > _STEPS:
                del steps[next(iter(steps))]
    return [StepMetrics(**values) for values in steps.values()]


def _values_of(line: bytes) -> dict[str, Any]:
    """The metrics in a line; nothing where it is none."""
    try:
        values = reading.json_of(line)
    except ValueError:
        return {}
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return {}
    return {name: value for name, value in values.items() if name in _FIELDS and type(value) in (int, float)}


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


class RunningMean:
    """An exponential mean without bias towards zero; smooths the losses, which vary widely from step to step."""

    def __init__(self, decay: float = 0.9) -> None:
        self._decay = decay
        self._sum = self._weight = 0.0

    @property
    def value(self) -> float:
        """The mean so far; 0 before the first value."""
        return self._sum / (self._weight or 1)

    def add(self, value: float) -> float:
        """Add a value and return the mean with it."""
        self._sum = self._decay * self._sum + (1 - self._decay) * value
        self._weight = self._decay * self._weight + (1 - self._decay)
        return self.value


class Losses:
    """The losses of the steps since the last checkpoint, still on the device, and a mean to show."""

    def __init__(self, device: torch.device, mean_so_far: float | None) -> None:
        """`mean_so_far`: of the steps before a resume."""
        self.sum = torch.zeros((), device=device)
        self.last = torch.zeros((), device=device)
        self.last_applied = False
        self._mean = RunningMean()
        self.shown: float | None = None  # the running mean of logged losses
        if mean_so_far is not None:
            self.log(mean_so_far)

    def add(self, loss: torch.Tensor, *, applied: bool) -> None:
        """Add the loss [] of a step, without waiting for the device."""
        self.sum += loss
        self.last, self.last_applied = loss, applied

    def log(self, loss: float) -> None:
        """Add the loss of a logged step to the mean."""
        self.shown = self._mean.add(loss)

    def reset(self) -> None:
        """Start a new sum, after a checkpoint."""
        self.sum.zero_()
