"""Captions as a dataset has them: the one beside an image, and the first ones of any format."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sdjob.dataset.detect import TXT_CAPTIONS, DatasetInfo, table_of
from sdjob.dataset.formats.metadata import metadata_file, read_captions
from sdjob.dataset.formats.parquet import column_values
from sdjob.files import shown
from sdjob.problems import JobError, bad_input


def read_caption(image: Path) -> str:
    """The caption in the .txt beside an image. Raises JobError."""
    path = image.with_suffix(TXT_CAPTIONS)
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        found = f"the caption cannot be read ({error})"
        raise JobError(bad_input(shown(path), found, "write it again, as UTF-8 text")) from error


def first_captions(info: DatasetInfo, limit: int) -> list[str]:
    """Up to `limit` captions from the beginning; little else is read. Raises JobError."""
    return list(islice(_captions(info), limit))


def _captions(info: DatasetInfo) -> Iterator[str]:
    column = info.caption_column
    if column is None:
        return
    if info.format == "folder":
        yield from (read_caption(image) for image in info.files)
    elif info.format == "metadata":
        yield from read_captions(metadata_file(info.path), column)
    else:
        yield from (str(value) for value in column_values(table_of(info), column) if value is not None)
