"""Dataset formats, one module each, behind one type: Format.

Start reading: folder.py, the simplest. A new format is a module here and its line in detect.FORMATS.
May import: sdjob.dataset.images, splits and text_files, sdjob.files, sdjob.problems, sdjob.reading; pyarrow lazily.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, overload

from sdjob.dataset.splits import TO_TRAIN, UNNAMED
from sdjob.files import Listing, shown
from sdjob.reading import in_threads


@dataclass(frozen=True)
class Wanted:
    """What to read: the columns, `caption` None where captions are not needed, and the splits by preference."""

    image: str
    caption: str | None
    splits: tuple[str, ...] = TO_TRAIN


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset that can be read: what is known without decoding an image."""

    path: Path
    format: Format
    files: Sequence[Path]  # the images in order, or the files of a table
    num_examples: int
    columns: tuple[str, ...]
    image_column: str
    caption_column: str | None  # None: read without captions
    row_counts: tuple[int, ...] = ()  # rows of each file of a table; empty: each file is an image
    split: str = UNNAMED  # the split that these are of, where names say one
    companions: Sequence[Path] = ()  # what is read with the files: the caption of each image, or their list

    def first(self, count: int) -> DatasetInfo:
        """Only the first `count` images of a folder; a table stays whole."""
        if self.row_counts:
            return self
        files = self.files[:count]
        captions = self.companions[:count] if len(self.companions) == len(self.files) else self.companions
        return replace(self, files=files, num_examples=len(files), companions=captions)


class Rows(Protocol):
    """Random access to the examples of a dataset. Picklable; reading is thread-safe."""

    def image(self, index: int) -> Any:
        """The stored image: a path, encoded bytes, or a {bytes, path} dictionary."""
        ...

    def caption(self, index: int) -> str | None:
        """None where the dataset is read without captions. Raises JobError."""
        ...


def _file_name(info: DatasetInfo, index: int) -> str:
    return shown(info.files[index])


def _all_files(info: DatasetInfo) -> Iterator[Path]:
    return iter(info.files)


def _some_files(info: DatasetInfo, indices: Sequence[int]) -> dict[int, Path]:
    return {index: info.files[index] for index in indices}


def file_sizes(info: DatasetInfo) -> Iterable[bytes]:
    """Names and sizes of the files, in order."""
    return in_threads(lambda path: path.name.encode(errors="surrogateescape") + size_line(path), info.files)


def size_line(path: Path) -> bytes:
    """The size of a file as a line; of one that cannot be reached, which is skipped or ends the run, a constant."""
    try:
        return f"/{path.stat().st_size}\n".encode()
    except OSError:
        return b"/unreachable\n"


def _never(_listing: Listing) -> bool:
    return False


@dataclass(frozen=True)
class Format:
    """How one kind of dataset is recognized and read. The defaults are for formats with one file per image.

    All functions raise JobError (66) for a dataset that cannot be read.
    """

    name: str
    description: str  # in messages, such as "parquet files"
    # Whether a folder by itself is such a dataset; the flag: captions are needed.
    detect: Callable[[Listing, bool], bool]
    # Counts and checks it, without decoding an image.
    inspect: Callable[[Listing, Wanted], DatasetInfo]
    # The captions, read lazily; none where the dataset is read without them.
    captions: Callable[[DatasetInfo], Iterator[str]]
    # For training: random access; what must be converted first goes below the folder (None: the user's cache),
    # with a call of the function for each sign of progress.
    open: Callable[[DatasetInfo, Path | None, Callable[[], None]], Rows]
    # What an image is called in messages.
    name_of: Callable[[DatasetInfo, int], str] = _file_name
    # The stored images in order, read lazily.
    images: Callable[[DatasetInfo], Iterator[Any]] = _all_files
    # A few stored images by index, at these indices or near them.
    sample: Callable[[DatasetInfo, Sequence[int]], dict[int, Any]] = _some_files
    # What changes when the data changes, for the fingerprint of a checkpoint.
    identity: Callable[[DatasetInfo], Iterable[bytes]] = file_sizes
    # Whether a folder that `detect` accepts lacks captions: one below it may have them.
    lacks_captions: Callable[[Listing], bool] = _never
    # Python packages that reading takes, by import name.
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files(Sequence[Path]):
    """Files of one folder as paths that are built on access: a million of them take seconds."""

    folder: Path
    names: tuple[str, ...] = field(repr=False)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Files: ...
    def __getitem__(self, index: int | slice) -> Path | Files:
        if isinstance(index, slice):
            return replace(self, names=self.names[index])
        return self.folder / self.names[index]

    def __len__(self) -> int:
        return len(self.names)
