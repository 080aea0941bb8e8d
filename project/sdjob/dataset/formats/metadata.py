"""metadata.jsonl and metadata.csv: images by file name, with captions; mistakes with their line numbers."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjob.dataset import splits
from sdjob.dataset.formats import DatasetInfo, Files, Format, Wanted, file_sizes
from sdjob.dataset.formats.file_names import FileNames
from sdjob.dataset.formats.metadata_rows import FILE_NAME, Mistake, Row, read_rows
from sdjob.dataset.image_formats import remedy_for
from sdjob.dataset.images import is_image_name
from sdjob.dataset.text_files import LONGEST_CAPTION
from sdjob.files import Listing, few, shown
from sdjob.problems import JobError, Problem, bad_input

_NAMES = ("metadata.jsonl", "metadata.csv")  # in any case; the first that exists is read
_COLUMNS = 1000  # whose names are kept, for messages
_MOST_MISTAKES = 10_000  # lines; then the rest is not read
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

Mistakes = dict[Mistake, list[tuple[int, str]]]  # lines, and the values that are wrong


def _detect(listing: Listing, captions: bool) -> bool:
    """Images that need no captions need no metadata either."""
    return _file_in(listing) is not None and (
        captions or not any(is_image_name(name) for name in listing.files)
    )


def _inspect(listing: Listing, wanted: Wanted) -> DatasetInfo:
    path = listing.path / (_file_in(listing) or _NAMES[0])
    metadata = _read(path, wanted.caption)
    folders = tuple(dict.fromkeys(map(posixpath.dirname, metadata.captions)))
    choice = splits.choose(folders, wanted.splits)
    if choice is None:
        raise JobError(splits.refused(shown(path), folders, wanted.splits))
    kept = {*choice.names}
    names = sorted(name for name in metadata.captions if posixpath.dirname(name) in kept)
    files = Files(listing.path, tuple(names))
    return DatasetInfo(
        listing.path,
        METADATA,
        files,
        len(files),
        metadata.columns,
        FILE_NAME,
        wanted.caption,
        split=choice.split,
        companions=(path,),
    )


def _captions(info: DatasetInfo) -> Iterator[str]:
    return iter(_rows(info).captions)


def _identity(info: DatasetInfo) -> Iterable[bytes]:
    yield from file_sizes(info)
    yield info.companions[0].read_bytes()


@dataclass(frozen=True)
class _MetadataRows:
    files: Sequence[Path]
    captions: tuple[str, ...]

    def image(self, index: int) -> Path:
        return self.files[index]

    def caption(self, index: int) -> str | None:
        return self.captions[index] if self.captions else None


def _rows(info: DatasetInfo) -> _MetadataRows:
    if info.caption_column is None:
        return _MetadataRows(info.files, ())
    of = _read(info.companions[0], info.caption_column).captions
    return _MetadataRows(info.files, tuple(of[path.relative_to(info.path).as_posix()] for path in info.files))


def _open(info: DatasetInfo, cache: Path | None, progress: Callable[[], None]) -> _MetadataRows:
    return _rows(info)


METADATA = Format(
    "metadata",
    "images with metadata.jsonl or metadata.csv",
    _detect,
    _inspect,
    _captions,
    _open,
    identity=_identity,
)


def _file_in(listing: Listing) -> str | None:
    there = {name.lower(): name for name in reversed(listing.files)}
    return next((there[name] for name in _NAMES if name in there), None)


@dataclass(frozen=True)
class _Metadata:
    """The images of a metadata file: paths below its folder, with their captions where these are needed."""

    columns: tuple[str, ...]
    captions: dict[str, str]


def _read(path: Path, caption_column: str | None) -> _Metadata:
    """All rows, checked. Raises JobError with every kind of mistake and its lines."""
    columns: dict[str, None] = {}
    mistakes: Mistakes = defaultdict(list)
    rows = _noted(read_rows(path), columns, (FILE_NAME, caption_column))
    images = _images(path.parent, rows, caption_column, mistakes)
    others = [column for column in columns if column != FILE_NAME]
    other = f"set caption_column to one of {few(others, 20)}" if others else "add the captions to this file"
    for column, remedy in ((FILE_NAME, Mistake.NO_NAME.remedy), (caption_column, other)):
        if column and column not in columns and columns:
            found = f"has no column {column!r}; its columns are {few(columns, 20)}"
            raise JobError(bad_input(shown(path), found, remedy))
    rest = "; later lines are not read" if _count(mistakes) == _MOST_MISTAKES else ""
    problems = [_problem(path, mistake, lines, rest) for mistake, lines in mistakes.items()]
    if not images and not problems:
        problems.append(bad_input(shown(path), "has no rows", Mistake.UNREADABLE.remedy))
    if problems:
        raise JobError(problems)
    return _Metadata(tuple(columns), images)


def _noted(rows: Iterable[Row], columns: dict[str, None], wanted: Container[str | None]) -> Iterator[Row]:
    """The rows; the names of their columns go into `columns`: those that are wanted, and the first of the others."""
    for row in rows:
        columns.update((key, None) for key in row.values if len(columns) < _COLUMNS or key in wanted)
        yield row


def _count(mistakes: Mistakes) -> int:
    return sum(map(len, mistakes.values()))


def _problem(path: Path, mistake: Mistake, lines: Sequence[tuple[int, str]], rest: str) -> Problem:
    places = [f"{line} ({value})" if value else str(line) for line, value in sorted(lines)]
    word = "line" if len(lines) == 1 else "lines"
    remedy = mistake.remedy
    if mistake is Mistake.ABSENT:
        names = FileNames(path.parent)
        alike = [like for _, value in sorted(lines)[:6] if (like := names.like(value))]
        remedy = f"{remedy} (there: {few(alike)})" if alike else remedy
    return bad_input(shown(path), f"{mistake.found}: {word} {few(places)}{rest}", remedy)


def _images(
    folder: Path, rows: Iterable[Row], caption_column: str | None, mistakes: Mistakes
) -> dict[str, str]:
    """Path below the folder → caption; the lines of each mistake go into `mistakes`."""
    images: dict[str, str] = {}
    names = FileNames(folder)
    for row in rows:
        name = _normal(folder, row.values.get(FILE_NAME))
        caption = row.values.get(caption_column) if caption_column else ""
        mistake = row.mistake or _mistake(name, caption)
        actual = None if mistake else names.find(name)
        if not mistake:
            mistake = Mistake.ABSENT if actual is None else Mistake.TWICE if actual in images else None
        if mistake:
            mistakes[mistake].append((row.line, _named(row)))
            if _count(mistakes) == _MOST_MISTAKES:
                break
        elif actual is not None:
            images[actual] = str(caption)[: LONGEST_CAPTION + 1]  # so that a check names it
    return images


def _named(row: Row) -> str:
    value = row.values.get(FILE_NAME)
    return shown(value[:80]) if isinstance(value, str) else ""


def _normal(folder: Path, value: Any) -> str:
    """A file name without detours, relative to the folder where it is absolute and below it; "" for no name."""
    if not isinstance(value, str) or not value.strip():
        return ""
    if _URL.match(value):
        return value
    return posixpath.normpath(value).removeprefix(f"{folder}/")


def _mistake(name: str, caption: Any) -> Mistake | None:
    """What is wrong with one row by itself."""
    if not name:
        return Mistake.NO_NAME
    if not _is_unicode(name, "surrogateescape") or (isinstance(caption, str) and not _is_unicode(caption)):
        return Mistake.NO_UNICODE
    if _URL.match(name):
        return Mistake.URL
    if name.startswith(("/", "../")):
        return Mistake.OUTSIDE
    if not is_image_name(posixpath.basename(name.replace("\\", "/"))):
        return Mistake.UNREAD if remedy_for(name.rpartition(".")[2].lower()) else Mistake.NO_IMAGE
    if isinstance(caption, (list, tuple)):
        return Mistake.CAPTIONS
    return None if isinstance(caption, str) else Mistake.NO_CAPTION


def _is_unicode(text: str, errors: str = "strict") -> bool:
    try:
        text.encode(errors=errors)
    except UnicodeEncodeError:
        return False
    return True
