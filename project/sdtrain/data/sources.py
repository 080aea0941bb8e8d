"""Where images and captions come from: one interface over datasets of any format.

torch's ConcatDataset and Subset join sources and choose from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch.utils.data import Dataset

from sdjob.dataset.formats import DatasetInfo, Rows
from sdjob.dataset.images import source_of
from sdtrain.runtime.heartbeat import Pulse


@dataclass(frozen=True)
class SourceImage:
    """An image of a dataset that is read when asked for."""

    info: DatasetInfo
    rows: Rows
    index: int
    prompt: str | None  # of all images of the dataset; None: each has its caption

    def encoded(self) -> Path | bytes:
        """The image as it is stored. Raises ImageError."""
        return source_of(self.rows.image(self.index), self.info.path)

    def caption(self) -> str | None:
        """None where the dataset is read without captions. Raises JobError."""
        return self.rows.caption(self.index) if self.prompt is None else self.prompt

    def name(self) -> str:
        """Its path, or "file row N"."""
        return self.info.format.name_of(self.info, self.index)


class ImageSource(Protocol):
    """Images by index. Picklable; reading one is thread-safe."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> SourceImage: ...


@dataclass(frozen=True)
class DatasetSource(Dataset[SourceImage]):
    """The images of one dataset, of any format."""

    info: DatasetInfo
    rows: Rows
    prompt: str | None = None

    def __len__(self) -> int:
        return self.info.num_examples

    def __getitem__(self, index: int) -> SourceImage:
        return SourceImage(self.info, self.rows, index, self.prompt)


def open_source(info: DatasetInfo, cache_dir: Path | None, prompt: str | None = None) -> DatasetSource:
    """The images of a dataset; parquet is converted once, in `cache_dir` or the user's cache folder.

    Several processes may call this at once. Nothing is written to the dataset. Raises JobError.
    """
    return DatasetSource(info, info.format.open(info, cache_dir, Pulse("open the dataset")), prompt)
