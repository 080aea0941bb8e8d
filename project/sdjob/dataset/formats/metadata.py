"""metadata.jsonl and metadata.csv: images by file name, with captions; mistakes with their line numbers."""

from __future__ import annotations

import csv
import json
import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from sdjob.dataset.formats import Columns, DatasetInfo, Files, Format, file_sizes
from sdjob.dataset.images import is_image_name
from sdjob.files import Listing, few, shown, unreadable
from sdjob.problems import JobError, bad_input

_NAMES = ("metadata.jsonl", "metadata.csv")  # the first that exists is read
_COLUMN = "file_name"


class _Mistake(Enum):
    """What can be wrong with a line, and the remedy."""

    UNREADABLE = (
        "not a JSON object",
        'write one JSON object per line: {"file_name": "a.jpg", "text": "a caption"}',
    )
    NO_NAME = f"no {_COLUMN}", f"give every line a {_COLUMN}, relative to this folder"
    TWICE = f"a {_COLUMN} that an earlier line has", "keep one line for each image"
    OUTSIDE = (
        f"a {_COLUMN} outside this folder",
        "put the images into the folder of this file or below it, and name them relative to it",
    )
    NO_IMAGE = f"a {_COLUMN} that is not an image", "name images only (jpg, png, webp, bmp, gif, tiff)"
    ABSENT = f"a {_COLUMN} that does not exist", "copy the missing images, or take their lines out"
    NO_CAPTION = "no text in the caption column", "write the missing captions, or take these lines out"

    def __init__(self, found: str, remedy: str) -> None:
        self.found, self.remedy = found, remedy


def _detect(listing: Listing, captions: bool) -> bool:
    """Images that need no captions need no metadata either."""
    there = any(name in listing.files for name in _NAMES)
    return there and (captions or not any(is_image_name(name) for name in listing.files))


def _inspect(listing: Listing, columns: Columns) -> DatasetInfo:
    metadata = _read(_file_of(listing.path), columns.caption)
    files = Files(listing.path, metadata.names)
    return DatasetInfo(listing.path, METADATA, files, len(files), metadata.columns, _COLUMN, columns.caption)


def _captions(info: DatasetInfo) -> Iterator[str]:
    """In the order of the lines, of a file that `_read` has accepted."""
    column = info.caption_column
    if column is None:
        return iter(())
    return (str(row[column]) for _, row in _rows(_file_of(info.path)) if row and column in row)


def _identity(info: DatasetInfo) -> Iterable[bytes]:
    yield from file_sizes(info)
    yield _file_of(info.path).read_bytes()


@dataclass(frozen=True)
class _MetadataRows:
    files: Sequence[Path]
    captions: tuple[str, ...]

    def image(self, index: int) -> Path:
        return self.files[index]

    def caption(self, index: int) -> str | None:
        return self.captions[index] if self.captions else None


def _open(info: DatasetInfo, cache: Path | None, progress: Callable[[], None]) -> _MetadataRows:
    return _MetadataRows(info.files, _read(_file_of(info.path), info.caption_column).captions)


METADATA = Format(
    "metadata",
    "images with metadata.jsonl or metadata.csv",
    _detect,
    _inspect,
    _captions,
    _open,
    identity=_identity,
)


def _file_of(folder: Path) -> Path:
    first, second = (folder / name for name in _NAMES)
    return first if os.access(first, os.F_OK) else second


@dataclass(frozen=True)
class _Metadata:
    """The rows of a metadata file, sorted by name; `captions` is empty where they are not needed."""

    columns: tuple[str, ...]
    names: tuple[str, ...]  # relative to the folder of the file
    captions: tuple[str, ...]


def _read(path: Path, caption_column: str | None) -> _Metadata:
    """All rows, checked. Raises JobError with every kind of mistake and its lines."""
    try:
        rows = list(_rows(path))
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        found = f"cannot be read as UTF-8 text ({error})"
        raise JobError(bad_input(shown(path), found, "save it again as UTF-8")) from error
    columns = tuple(dict.fromkeys(key for _, row in rows for key in row or ()))
    others = [column for column in columns if column != _COLUMN]
    other = f"set caption_column to one of {few(others, 20)}" if others else "add the captions to this file"
    for column, remedy in ((_COLUMN, _Mistake.NO_NAME.remedy), (caption_column, other)):
        if column and column not in columns and columns:
            found = f"has no column {column!r}; its columns are {few(columns, 20)}"
            raise JobError(bad_input(shown(path), found, remedy))
    mistakes: dict[_Mistake, list[int]] = defaultdict(list)
    images = _images(path.parent, rows, caption_column, mistakes)
    problems = []
    for mistake, lines in mistakes.items():
        found = f"{mistake.found}: {'line' if len(lines) == 1 else 'lines'} {few(map(str, sorted(lines)))}"
        problems.append(bad_input(shown(path), found, mistake.remedy))
    if not images and not problems:
        problems.append(bad_input(shown(path), "has no rows", _Mistake.UNREADABLE.remedy))
    if problems:
        raise JobError(problems)
    names = tuple(sorted(images))
    captions = tuple(images[name] for name in names) if caption_column else ()
    return _Metadata(columns, names, captions)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line, row), row None where a line is not readable. Raises OSError, UnicodeDecodeError, csv.Error."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            reader = csv.DictReader(file)
            for row in reader:
                yield reader.line_num, {key: value for key, value in row.items() if key is not None}
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    value = json.loads(line)
                except ValueError:
                    value = None
                yield number, value if isinstance(value, dict) else None


def _images(
    folder: Path,
    rows: Sequence[tuple[int, dict[str, Any] | None]],
    caption_column: str | None,
    mistakes: dict[_Mistake, list[int]],
) -> dict[str, str]:
    """Normal file name → caption; the lines of each mistake go into `mistakes`."""
    images: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, row in rows:
        value = row.get(_COLUMN) if row else None
        name = posixpath.normpath(value) if isinstance(value, str) and value.strip() else ""
        caption = row.get(caption_column) if row and caption_column else ""
        if mistake := _mistake(row, name, caption, name in lines):
            mistakes[mistake].append(line)
        else:
            images[name] = str(caption)
            lines[name] = line
    for name in _absent(folder, images):
        mistakes[_Mistake.ABSENT].append(lines[name])
    return images


def _mistake(row: dict[str, Any] | None, name: str, caption: Any, known: bool) -> _Mistake | None:
    """What is wrong with one row by itself."""
    if row is None:
        return _Mistake.UNREADABLE
    if not name:
        return _Mistake.NO_NAME
    if name.startswith(("/", "../")):
        return _Mistake.OUTSIDE
    if not is_image_name(posixpath.basename(name)):
        return _Mistake.NO_IMAGE
    if known:
        return _Mistake.TWICE
    return None if isinstance(caption, str) else _Mistake.NO_CAPTION


def _absent(folder: Path, names: dict[str, str]) -> list[str]:
    """The names that are not there: one listing a folder instead of a stat a file."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for name in names:
        parent, base = posixpath.split(name)
        wanted[parent].add(base)
    absent = []
    for parent, bases in wanted.items():
        try:
            with os.scandir(folder / parent) as entries:
                there = {entry.name for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            there = set()
        except OSError as error:
            raise JobError(unreadable(folder / parent, error)) from error
        absent += [posixpath.join(parent, base) for base in bases - there]
    return absent
