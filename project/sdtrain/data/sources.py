"""Where images and captions come from: one interface over datasets, several of them joined, or a part of one."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from sdjob.dataset.formats import DatasetInfo, Rows
from sdjob.dataset.images import source_of
from sdtrain.runtime.heartbeat import Pulse


class ImageSource(Protocol):
    """Encoded images with their captions and names. Picklable; reading an example is thread-safe."""

    def __len__(self) -> int: ...

    def encoded(self, index: int) -> Path | bytes:
        """The image as it is stored. Raises ImageError."""
        ...

    def caption(self, index: int) -> str | None:
        """None where the dataset is read without captions. Raises JobError."""
        ...

    def name(self, index: int) -> str:
        """Its path, or "file row N"."""
        ...


def open_source(info: DatasetInfo, cache_dir: Path | None) -> ImageSource:
    """The images of a dataset; parquet is converted once, in `cache_dir` or the user's cache folder.

    Several processes may call this at once. Nothing is written to the dataset. Raises JobError.
    """
    return DatasetSource(info, info.format.open(info, cache_dir, Pulse("open the dataset")))


@dataclass(frozen=True)
class DatasetSource:
    """The images of one dataset, of any format."""

    info: DatasetInfo
    rows: Rows

    def __len__(self) -> int:
        return self.info.num_examples

    def encoded(self, index: int) -> Path | bytes:
        return source_of(self.rows.image(index), self.info.path)

    def caption(self, index: int) -> str | None:
        return self.rows.caption(index)

    def name(self, index: int) -> str:
        return self.info.format.name_of(self.info, index)


@dataclass(frozen=True)
class JoinedSource:
    """Several sources one after the other, every image of one with the same caption."""

    sources: tuple[ImageSource, ...]
    captions: tuple[str, ...]  # one for each source

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def encoded(self, index: int) -> Path | bytes:
        number, local = self._at(index)
        return self.sources[number].encoded(local)

    def caption(self, index: int) -> str | None:
        return self.captions[self._at(index)[0]]

    def name(self, index: int) -> str:
        number, local = self._at(index)
        return self.sources[number].name(local)

    def _at(self, index: int) -> tuple[int, int]:
        """(source, index within it)"""
        starts = [0, *accumulate(map(len, self.sources))]
        number = bisect_right(starts, index) - 1
        return number, index - starts[number]


@dataclass(frozen=True)
class PartialSource:
    """Some of the images of a source."""

    source: ImageSource
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def encoded(self, index: int) -> Path | bytes:
        return self.source.encoded(self.indices[index])

    def caption(self, index: int) -> str | None:
        return self.source.caption(self.indices[index])

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])
