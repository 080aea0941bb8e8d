"""Where images and captions come from: one interface over files and tables. Decoding is sdjob.dataset.images'."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image

from sdjob.dataset.captions import read_caption
from sdjob.dataset.detect import TXT_CAPTIONS, DatasetInfo, table_of
from sdjob.dataset.formats.metadata import metadata_file, read_metadata
from sdjob.dataset.formats.parquet import Table
from sdjob.dataset.images import ImageError, decode, size_of, source_of
from sdjob.files import shown
from sdjob.problems import JobError, bad_input, bad_output
from sdtrain.runtime import heartbeat


class ImageSource(Protocol):
    """Images with their captions and names. Picklable; reading an example is thread-safe."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image:
        """RGB, upright. Raises ImageError."""
        ...

    def caption(self, index: int) -> str | None:
        """None where the dataset was opened without captions."""
        ...

    def name(self, index: int) -> str:
        """Its path, or "file row N"."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Width and height, upright, from the image's header. Raises ImageError."""
        ...

    def digest(self, index: int) -> str:
        """A hash of the image as it is stored. Raises ImageError."""
        ...


def open_source(info: DatasetInfo, cache_dir: Path | None) -> ImageSource:
    """The images of a dataset; parquet is converted once, in `cache_dir` or the user's cache folder.

    Several processes may call this at once. Nothing is written to the dataset. Raises JobError.
    """
    if info.format == "folder":
        return FileSource(info, None)
    if info.format == "metadata":
        metadata = read_metadata(metadata_file(info.path), info.caption_column)
        return FileSource(info, metadata.captions or None)
    return TableSource(info, table_of(info), _load_table(info, cache_dir or _default_cache()))


@dataclass(frozen=True)
class FileSource:
    """Image files, with captions from a metadata file (given here) or from a .txt beside each image."""

    info: DatasetInfo
    captions: tuple[str, ...] | None

    def __len__(self) -> int:
        return self.info.num_examples

    def image(self, index: int) -> Image:
        return decode(self.info.files[index])

    def caption(self, index: int) -> str | None:
        if self.captions is not None:
            return self.captions[index]
        if self.info.caption_column != TXT_CAPTIONS:
            return None
        return read_caption(self.info.files[index])

    def name(self, index: int) -> str:
        return shown(self.info.files[index])

    def size(self, index: int) -> tuple[int, int]:
        return size_of(self.info.files[index])

    def digest(self, index: int) -> str:
        return _digest(self.info.files[index])


@dataclass(frozen=True)
class TableSource:
    """Rows of a parquet or saved dataset, mapped into memory by the `datasets` library."""

    info: DatasetInfo
    table: Table
    rows: Any  # datasets.Dataset

    def __len__(self) -> int:
        return self.info.num_examples

    def image(self, index: int) -> Image:
        return decode(self._image(index))

    def caption(self, index: int) -> str | None:
        if self.info.caption_column is None:
            return None
        caption = self._value(index, self.info.caption_column)
        if caption is None:
            found, remedy = "the row has no caption", "take this row out, or give it a caption"
            raise JobError(bad_input(self.name(index), found, remedy))
        return str(caption)

    def name(self, index: int) -> str:
        return self.table.row_name(index)

    def size(self, index: int) -> tuple[int, int]:
        return size_of(self._image(index))

    def digest(self, index: int) -> str:
        return _digest(self._image(index))

    def _image(self, index: int) -> Path | bytes:
        return source_of(self._value(index, self.info.image_column), self.info.path)

    def _value(self, index: int, column: str) -> Any:
        """One value as stored: neither decoded nor copied with the rest of its row."""
        return self.rows[index][column][0].as_py()


@dataclass(frozen=True)
class JoinedSource:
    """Several sources one after the other, every image of one with the same caption."""

    sources: tuple[ImageSource, ...]
    captions: tuple[str, ...]  # one for each source

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def image(self, index: int) -> Image:
        source, index = self._at(index)
        return self.sources[source].image(index)

    def caption(self, index: int) -> str | None:
        return self.captions[self._at(index)[0]]

    def name(self, index: int) -> str:
        source, index = self._at(index)
        return self.sources[source].name(index)

    def size(self, index: int) -> tuple[int, int]:
        source, index = self._at(index)
        return self.sources[source].size(index)

    def digest(self, index: int) -> str:
        source, index = self._at(index)
        return self.sources[source].digest(index)

    def _at(self, index: int) -> tuple[int, int]:
        """(source, index within it)"""
        for place, source in enumerate(self.sources):
            if index < len(source):
                return place, index
            index -= len(source)
        raise IndexError(index)


@dataclass(frozen=True)
class PartialSource:
    """Some of the images of a source."""

    source: ImageSource
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Image:
        return self.source.image(self.indices[index])

    def caption(self, index: int) -> str | None:
        return self.source.caption(self.indices[index])

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.source.size(self.indices[index])

    def digest(self, index: int) -> str:
        return self.source.digest(self.indices[index])


def _digest(stored: Path | bytes) -> str:
    try:
        content = stored if isinstance(stored, bytes) else stored.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror or error})") from error
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _load_table(info: DatasetInfo, cache: Path) -> Any:
    """A datasets.Dataset that gives rows as Arrow tables of the needed columns, undecoded."""
    import datasets

    columns = [column for column in (info.image_column, info.caption_column) if column]
    datasets.disable_progress_bars()
    try:
        if info.format == "saved":
            rows = datasets.load_from_disk(str(info.path))
        else:
            with heartbeat.while_writing():
                rows = datasets.load_dataset(
                    "parquet",
                    data_files=[str(path) for path in info.files],
                    split="train",
                    columns=columns,
                    cache_dir=str(cache),
                )
        return rows.select_columns(columns).with_format("arrow")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "disk space" in str(error):
            remedy = "free some space, or set cache_dir to a folder on a larger volume"
            raise JobError(bad_output(str(cache), f"is full ({error})", remedy)) from error
        found = f"cannot be opened, with its cache in {cache} ({error})"
        remedy = "set cache_dir to a writable folder, and check the files of the dataset"
        raise JobError(bad_input(shown(info.path), found, remedy)) from error
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        found = f"cannot be read by the datasets library ({error.__cause__ or error})"
        remedy = "load it with that library elsewhere, fix it, and save it again"
        raise JobError(bad_input(shown(info.path), found, remedy)) from error


def _default_cache() -> Path:
    """The user's cache folder, or a temporary one where the home cannot be written."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cache = base / "sd-finetune" / "datasets"
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except (OSError, RuntimeError):  # not writable, or a user without a home
        return Path(tempfile.gettempdir()) / f"sd-finetune-{os.getuid()}" / "datasets"
