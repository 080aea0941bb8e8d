"""Trackers: the first rank hands metrics, images and texts to metrics.jsonl and TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from sdjob.output.layout import OutputLayout
from sdtrain.reporting.metrics import MetricsFile, StepMetrics

_TAGS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "epoch": "train/epoch",
    "skipped_steps": "train/skipped_steps",
    "images_per_second": "speed/images_per_second",
    "peak_memory_gib": "speed/peak_memory_gib",
    "validation_loss": "validation/loss",
}


class Backend(Protocol):
    """A program that shows a run."""

    def log(self, metrics: StepMetrics) -> None:
        """Show the metrics of a step."""

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        """Show an image of a step."""

    def text(self, tag: str, text: str) -> None:
        """Show a text about the whole run."""

    def flush(self) -> None:
        """Write everything so far, so that a killed run loses nothing from before its checkpoint."""


class TensorBoard:
    """A backend that writes event files."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard reads event files in the order of their names, which hold the second of their creation.
        while list(folder.glob(f"*.tfevents.{int(time.time())}.*")):
            time.sleep(0.05)
        # Hides what an earlier process wrote of the steps to come: those after the checkpoint, or all.
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else 0)

    def log(self, metrics: StepMetrics) -> None:
        for name, tag in _TAGS.items():
            if (value := getattr(metrics, name)) is not None:
                self._writer.add_scalar(tag, value, metrics.step, metrics.time)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        self._writer.add_image(tag, np.asarray(image), step, dataformats="HWC")

    def text(self, tag: str, text: str) -> None:
        self._writer.add_text(tag, text)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@dataclass(frozen=True)
class Tracker:
    """Writes metrics.jsonl and hands everything to the backends; ranks other than the first have neither."""

    file: MetricsFile | None = None
    backends: tuple[Backend, ...] = ()

    def log(self, metrics: StepMetrics) -> None:
        if self.file:
            self.file.log(metrics)
        for backend in self.backends:
            backend.log(metrics)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        for backend in self.backends:
            backend.image(tag, image, step)

    def text(self, tag: str, text: str) -> None:
        for backend in self.backends:
            backend.text(tag, text)

    def flush(self) -> None:
        for backend in self.backends:
            backend.flush()


@contextmanager
def tracker(layout: OutputLayout, first_step: int, *, writing: bool) -> Iterator[Tracker]:
    """The tracker of this rank; its files are complete when the block ends."""
    if not writing:
        yield Tracker()
        return
    with (
        closing(MetricsFile(layout.metrics, first_step)) as file,
        closing(TensorBoard(layout.tensorboard, first_step)) as board,
    ):
        yield Tracker(file, (board,))
