"""The tracker: the first rank writes metrics, images and texts to metrics.jsonl and TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sdjob.output.layout import OutputLayout
from sdtrain.reporting.metrics import MetricsFile, StepMetrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

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


@dataclass(frozen=True)
class Tracker:
    """Writes nothing where both are None, on ranks other than the first."""

    file: MetricsFile | None = None
    board: SummaryWriter | None = None

    def log(self, metrics: StepMetrics) -> None:
        if self.file and self.board:
            self.file.log(metrics)
            for name, tag in _TAGS.items():
                if (value := getattr(metrics, name)) is not None:
                    self.board.add_scalar(tag, value, metrics.step, metrics.time)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        if self.board:
            self.board.add_image(tag, np.asarray(image), step, dataformats="HWC")

    def text(self, tag: str, text: str) -> None:
        if self.board:
            self.board.add_text(tag, text)

    def flush(self) -> None:
        """Write everything so far, so that a run killed after its checkpoint loses nothing from before."""
        if self.board:
            self.board.flush()


@contextmanager
def tracker(layout: OutputLayout, first_step: int, *, writing: bool) -> Iterator[Tracker]:
    """The tracker of this rank; its files are complete when the block ends."""
    if not writing:
        yield Tracker()
        return
    with (
        closing(MetricsFile(layout.metrics, first_step)) as file,
        closing(_tensorboard(layout.tensorboard, first_step)) as board,
    ):
        yield Tracker(file, board)


def _tensorboard(folder: Path, first_step: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    # TensorBoard reads event files in the order of their names, which hold the second of their creation.
    while list(folder.glob(f"*.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)
    # Hides what an earlier process wrote of the steps to come: those after the checkpoint, or all.
    return SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else 0)
