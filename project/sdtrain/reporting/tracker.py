"""TensorBoard, written by the first rank only."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image


class Tracker(Protocol):
    """Where figures and images of a run go."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Figures of a step, by tag."""

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        """An image of a step."""

    def text(self, tag: str, text: str) -> None:
        """A text that holds for the whole run."""

    def flush(self) -> None:
        """Has everything so far in the files, so that a killed run loses nothing from before its checkpoint."""


class TensorBoard:
    """A Tracker that writes event files."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Event files are read in the order of their names, which tell the second in which they were made.
        while list(folder.glob(f"*.tfevents.{int(time.time())}.*")):
            time.sleep(0.05)
        # What an earlier process wrote of the steps to come goes: those after the checkpoint, or all.
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else 0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        self._writer.add_image(tag, np.asarray(image), step, dataformats="HWC")

    def text(self, tag: str, text: str) -> None:
        self._writer.add_text(tag, text)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Silent:
    """A Tracker of the ranks that write nothing."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Nothing: the first rank writes."""

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        """Nothing: the first rank writes."""

    def text(self, tag: str, text: str) -> None:
        """Nothing: the first rank writes."""

    def flush(self) -> None:
        """Nothing: the first rank writes."""


@contextmanager
def tracker(folder: Path, first_step: int, *, writing: bool) -> Iterator[Tracker]:
    """The tracker of this rank; event files are whole when the block ends."""
    if not writing:
        yield Silent()
        return
    board = TensorBoard(folder, first_step)
    try:
        yield board
    finally:
        board.close()
