"""What `save_to_disk` of the datasets library wrote: Arrow files, listed in state.json, in one or several splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sdjob.dataset import splits
from sdjob.dataset.formats import DatasetInfo, Wanted
from sdjob.dataset.formats.tables import ArrowRows, checked, mapped, reading, table_format
from sdjob.files import Listing, few, read_json, shown
from sdjob.problems import JobError, bad_input

_SPLITS = "dataset_dict.json"
_STATE = "state.json"
_AGAIN = "save the dataset again"


def _detect(listing: Listing, captions: bool) -> bool:
    return _SPLITS in listing.files or {_STATE, "dataset_info.json"} <= {*listing.files}


def _inspect(listing: Listing, wanted: Wanted) -> DatasetInfo:
    folder = listing.path
    split = None
    if _SPLITS in listing.files:
        name, split = _training_split(folder / _SPLITS, wanted.splits)
        folder = folder / name
    names = _read(
        folder / _STATE, lambda state: [_plain(entry["filename"]) for entry in state["_data_files"]]
    )
    (said,) = _read(folder / _STATE, lambda state: [str(state.get("_split") or "")])
    split = splits.split_of(said) if split is None else split
    files = tuple(folder / name for name in names)
    tables = [mapped(path) for path in files]
    if not tables:
        raise JobError(bad_input(shown(folder), "holds no rows", _AGAIN))
    counts = tuple(table.num_rows for table in tables)
    schemas = [table.schema for table in tables]
    columns = (wanted.image, wanted.caption)
    info = DatasetInfo(folder, SAVED, files, sum(counts), tuple(schemas[0].names), *columns, counts, split)
    filled = next((table for table in tables if table.num_rows), tables[0])

    def first(column: str) -> list[Any]:
        return [value.as_py() for value in filled[column][:1]]

    _validate(files, tables, columns)
    return checked(info, schemas, first, partial(_nulls, tables))


def _validate(files: Sequence[Path], tables: Sequence[Any], columns: Sequence[str | None]) -> None:
    """Refuse offsets that lead out of a file, which would end the process that reads the row. Raises JobError.

    Only the offsets are read, not what they lead to: a caption that is not text is for its row to report.
    """
    import pyarrow as pa

    as_bytes = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    for path, table in zip(files, tables, strict=True):
        for column in (name for name in table.column_names if name in columns):
            with reading(path):
                for chunk in table[column].chunks:
                    chunk.view(as_bytes.get(chunk.type, chunk.type)).validate(full=True)


def _nulls(tables: Sequence[Any], column: str) -> list[int]:
    """The first row that has nothing in a column, and the number of them; nothing if there is none."""
    counts = [table[column].null_count for table in tables]
    if not any(counts):
        return []
    number = next(number for number, count in enumerate(counts) if count)
    local = tables[number][column].is_null().index(True).as_py()
    return [sum(table.num_rows for table in tables[:number]) + local, sum(counts)]


def _training_split(path: Path, wanted: tuple[str, ...]) -> tuple[str, str]:
    """The name of the split to train on, and which it is."""
    names = _read(path, lambda state: list(map(_plain, state["splits"])))
    choice = splits.choose(names, wanted)
    if choice and len(choice.names) == 1:
        return choice.names[0], choice.split
    if choice:
        found = f"has no split named train; it has {few(names) or 'none'}"
        remedy = (
            f"set dataset_split to one of them, for example dataset_split={names[0] if names else 'NAME'}"
        )
        raise JobError(bad_input(shown(path.parent), found, remedy))
    raise JobError(splits.refused(shown(path.parent), names, wanted))


def _read(path: Path, part: Callable[[dict[str, Any]], list[str]]) -> list[str]:
    """A part of a JSON file. Raises JobError."""
    try:
        return part(read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise JobError(bad_input(shown(path), f"is not readable ({error!r})", _AGAIN)) from error


def _plain(name: str) -> str:
    """The name of a file or folder in this one. Raises ValueError, TypeError."""
    if Path(name).name != name or not name or "\0" in name:
        raise ValueError(f"{name!r} is not a file name")
    return name


def _column(path: Path, column: str) -> Iterator[Any]:
    table = mapped(path)
    with reading(path):
        for chunk in table[column].chunks:
            yield from (value.as_py() for value in chunk)


def _rows(path: Path, column: str, rows: Sequence[int]) -> dict[int, Any]:
    values = mapped(path)[column]
    return {row: values[row].as_py() for row in rows}


def _open(info: DatasetInfo, cache: Path | None, progress: Callable[[], None]) -> ArrowRows:
    return ArrowRows(info, tuple(info.files))


SAVED = table_format(
    "saved", "a dataset saved with datasets' save_to_disk", _detect, _inspect, _column, _rows, _open
)
