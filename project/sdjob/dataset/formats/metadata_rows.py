"""The lines of metadata.jsonl and metadata.csv, as they are written or with what is wrong with them."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from sdjob.dataset.text_files import lines
from sdjob.files import few, shown, suffix_of
from sdjob.problems import JobError, bad_input

FILE_NAME = "file_name"
_COMMAS = 'quote captions that hold commas, and double quotes inside of them: a.jpg,"a dog, ""sitting"""'
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}

_LONGEST_LINE = 16 << 20  # characters


class Mistake(Enum):
    """What can be wrong with a line, and the remedy."""

    UNREADABLE = (
        "not a JSON object",
        'write one JSON object per line: {"file_name": "a.jpg", "text": "a caption"}',
    )
    TOO_LONG = (
        f"a line of more than {_LONGEST_LINE:,} characters",
        "write one image with its caption in each line",
    )
    KEY_TWICE = "the same key twice", "keep one value for each key"
    MORE_FIELDS = "more fields than the header", _COMMAS
    FEWER_FIELDS = "fewer fields than the header", _COMMAS
    NO_NAME = f"no {FILE_NAME}", f"give every line a {FILE_NAME}, relative to this folder"
    TWICE = f"a {FILE_NAME} that an earlier line has", "keep one line for each image"
    URL = f"a {FILE_NAME} that is a URL", "download the images, and name the files"
    OUTSIDE = (
        f"a {FILE_NAME} outside this folder",
        "put the images into the folder of this file or below it, and name them relative to it",
    )
    NO_IMAGE = f"a {FILE_NAME} that is not an image", "name images only (jpg, png, webp, avif, tiff, …)"
    UNREAD = (
        f"a {FILE_NAME} of a format that is not read",
        "run `pip install pillow-heif` (HEIC) or `pip install pillow-jxl-plugin` (JPEG XL); export others as PNG",
    )
    ABSENT = f"a {FILE_NAME} that does not exist", "copy the missing images, or take their lines out"
    NO_CAPTION = "no text in the caption column", "write the missing captions, or take these lines out"
    CAPTIONS = (
        "a list in the caption column",
        "keep one caption for each image, since it would not be defined which one is trained on",
    )
    NO_UNICODE = (
        "text that is not valid Unicode",
        "write these lines again, without lone surrogates (\\ud800)",
    )

    def __init__(self, found: str, remedy: str) -> None:
        self.found, self.remedy = found, remedy


@dataclass(frozen=True)
class Row:
    """A line: its values by column, or its mistake."""

    line: int
    values: dict[str, Any] = field(default_factory=dict)
    mistake: Mistake | None = None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file. Raises JobError where it cannot be read at all."""
    read = _csv_rows if suffix_of(path.name) == ".csv" else _json_rows
    return read(path)


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines(path, _LONGEST_LINE), 1):
        if len(line) > _LONGEST_LINE:
            yield Row(number, mistake=Mistake.TOO_LONG)
        elif line.strip():
            try:
                pairs = json.loads(line, object_pairs_hook=_Pairs)
            except (ValueError, RecursionError):
                pairs = None
            if not isinstance(pairs, _Pairs):
                yield Row(number, mistake=Mistake.UNREADABLE)
            else:
                values = dict(pairs)
                yield Row(number, values, Mistake.KEY_TWICE if len(values) < len(pairs) else None)


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of a JSON object, with those that are there twice."""


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.reader(_short(lines(path, _LONGEST_LINE)), strict=True)
    try:
        header = next(reader, [])
        _check_header(path, header)
        end = reader.line_num
        for fields in reader:
            start, end = end + 1, reader.line_num
            if len(fields) > len(header):
                yield Row(start, mistake=Mistake.MORE_FIELDS)
            elif fields:
                mistake = Mistake.FEWER_FIELDS if len(fields) < len(header) else None
                yield Row(start, dict(zip(header, fields, strict=False)), mistake)
    except csv.Error as error:
        found = f"is not CSV from line {reader.line_num} on ({error})"
        raise JobError(bad_input(shown(path), found, f"close every quotation mark; {_COMMAS}")) from error


def _short(rows: Iterator[str]) -> Iterator[str]:
    """Raises csv.Error at a line that is too long."""
    for row in rows:
        if len(row) > _LONGEST_LINE:
            raise csv.Error(Mistake.TOO_LONG.found)
        yield row


def _check_header(path: Path, header: list[str]) -> None:
    """Refuse names of columns that would be misread. Raises JobError."""
    separator = next((mark for mark in _SEPARATORS if len(header) == 1 and mark in header[0]), None)
    if separator:
        found = f"separates its fields by {_SEPARATORS[separator]} ({separator!r}): {shown(header[0])!r}"
        raise JobError(bad_input(shown(path), found, "save it with commas as separators"))
    if twice := sorted(name for name, count in Counter(header).items() if name and count > 1):
        found = f"has columns of the same name: {few(twice)}"
        raise JobError(bad_input(shown(path), found, "keep one column of each name"))
    if spaced := [name for name in header if name != name.strip()]:
        found = f"has spaces around names of columns: {few(map(repr, spaced))}"
        raise JobError(
            bad_input(shown(path), found, "write the header, and the fields, without spaces after commas")
        )
