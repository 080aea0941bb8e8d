"""What `save_to_disk` of the datasets library wrote: Arrow files, listed in state.json, in one or several splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sdjob.dataset.formats import Columns, DatasetInfo
from sdjob.dataset.formats.tables import ArrowRows, checked, mapped, table_format
from sdjob.files import Listing, few, read_json, shown
from sdjob.problems import JobError, bad_input

_SPLITS = "dataset_dict.json"
_STATE = "state.json"
_AGAIN = "save the dataset again"


def _detect(listing: Listing, captions: bool) -> bool:
    return _SPLITS in listing.files or {_STATE, "dataset_info.json"} <= {*listing.files}


def _inspect(listing: Listing, columns: Columns) -> DatasetInfo:
    folder = listing.path
    if _SPLITS in listing.files:
        folder = folder / _training_split(folder / _SPLITS)
    names = _read(folder / _STATE, lambda state: [entry["filename"] for entry in state["_data_files"]])
    files = tuple(folder / name for name in names)
    tables = [mapped(path) for path in files]
    if not tables:
        raise JobError(bad_input(shown(folder), "holds no rows", _AGAIN))
    counts = tuple(table.num_rows for table in tables)
    empty = sum(t[columns.caption].null_count for t in tables if columns.caption in t.column_names)
    schema = tables[0].schema
    info = DatasetInfo(
        folder, SAVED, files, sum(counts), tuple(schema.names), columns.image, columns.caption, counts
    )
    return checked(info, schema, empty)


def _training_split(path: Path) -> str:
    """The split to train on: "train", or the only one."""
    splits = _read(path, lambda state: [str(split) for split in state["splits"]])
    if "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else splits[0]
    found = f"has no split named train; it has {few(splits) or 'none'}"
    raise JobError(bad_input(shown(path.parent), found, "set dataset_name to the folder of one split"))


def _read(path: Path, part: Callable[[dict[str, Any]], list[str]]) -> list[str]:
    """A part of a JSON file. Raises JobError."""
    try:
        return part(read_json(path))
    except (KeyError, TypeError) as error:
        raise JobError(bad_input(shown(path), f"is not readable ({error!r})", _AGAIN)) from error


def _column(path: Path, column: str) -> Iterator[Any]:
    for chunk in mapped(path)[column].chunks:
        yield from chunk.to_pylist()


def _rows(path: Path, column: str, rows: Sequence[int]) -> dict[int, Any]:
    values = mapped(path)[column]
    return {row: values[row].as_py() for row in rows}


def _open(info: DatasetInfo, cache: Path | None, progress: Callable[[], None]) -> ArrowRows:
    return ArrowRows(info, tuple(info.files))


SAVED = table_format(
    "saved", "a dataset saved with datasets' save_to_disk", _detect, _inspect, _column, _rows, _open
)
