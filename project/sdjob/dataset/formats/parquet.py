"""Datasets in tables: parquet files, and what `datasets` saved. Counted and sampled without reading them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdjob.files import check_pointer, few, read_json, shown, unreadable
from sdjob.problems import JobError, Problem, bad_input

if TYPE_CHECKING:
    import pyarrow as pa

_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])")
_SHARD = re.compile(r"(.*?)-(\d+)-of-(\d+)")
_GROUP_BYTES = 32 << 20  # rows are sampled from this much of a row group, whose front must be read
_BATCH = 8  # rows read at once where each may be an image
_CHUNK = 1000  # of texts
_AGAIN = "copy or download this file again"


@dataclass(frozen=True)
class Table:
    """What the footers of a table's files say. Rows are named by file and place, as a person finds them."""

    files: tuple[Path, ...]
    row_counts: tuple[int, ...]
    schema: pa.Schema
    nulls: int  # rows without a value in the caption column, as far as the footers know

    @property
    def num_rows(self) -> int:
        return sum(self.row_counts)

    def row_name(self, row: int) -> str:
        """ "file.parquet row N" of a row of the whole table, N from 0."""
        ends = list(accumulate(self.row_counts))
        number = bisect_right(ends, row)
        return f"{shown(self.files[number])} row {row - (ends[number - 1] if number else 0)}"


def train_files(names: Sequence[str]) -> tuple[str, ...]:
    """The files of the training split: train-*, or all that do not belong to another split."""
    splits = {name: match[1] if (match := _SPLIT.match(name)) else "" for name in names}
    wanted = "train" if "train" in splits.values() else ""
    return tuple(name for name in names if splits[name] == wanted)


def missing_shards(names: Iterable[str]) -> list[str]:
    """Names like train-00001-of-00003 for which there is no file."""
    seen: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in names:
        if match := _SHARD.match(name):
            seen[match[1], match[3]].add(int(match[2]))
    return [
        f"{stem}-{number:0{len(total)}}-of-{total}"
        for (stem, total), numbers in seen.items()
        for number in range(int(total))
        if number not in numbers
    ]


def parquet_table(files: tuple[Path, ...], caption_column: str | None) -> Table:
    """The footers of parquet files of one schema. Raises JobError."""
    import pyarrow.parquet as pq

    problems: list[Problem] = []
    footers: list[Any] = []
    for path in files:
        try:
            footers.append(_opened(path, pq.read_metadata))
        except JobError as error:
            problems += error.problems
    if problems:
        raise JobError(problems)
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    for path, schema in zip(files, schemas, strict=True):
        if not schema.equals(schemas[0], check_metadata=False):
            found = f"has other columns than {files[0].name}: {few(schema.names, 20)}"
            raise JobError(bad_input(shown(path), found, "keep files of one dataset in this folder"))
    counts = tuple(int(footer.num_rows) for footer in footers)
    return Table(files, counts, schemas[0], sum(_nulls(footer, caption_column) for footer in footers))


def _nulls(footer: Any, column: str | None) -> int:
    """Null values of a column, from the statistics of its row groups."""
    count = 0
    for group in (footer.row_group(number) for number in range(footer.num_row_groups)):
        for chunk in (group.column(number) for number in range(group.num_columns)):
            if chunk.path_in_schema == column and chunk.statistics and chunk.statistics.has_null_count:
                count += chunk.statistics.null_count
    return count


def saved_files(folder: Path) -> tuple[Path, ...]:
    """The arrow files that `save_to_disk` lists in state.json. Raises JobError."""
    path = folder / "state.json"
    try:
        names = [entry["filename"] for entry in read_json(path)["_data_files"]]
    except (KeyError, TypeError) as error:
        raise JobError(bad_input(shown(path), f"is not readable ({error!r})", "save it again")) from error
    return tuple(folder / name for name in names)


def saved_table(folder: Path, caption_column: str | None) -> Table:
    """A folder written by `Dataset.save_to_disk`; its files are mapped, not read. Raises JobError."""
    files = saved_files(folder)
    tables = [_opened(path, _read_arrow) for path in files]
    if not tables:
        raise JobError(bad_input(shown(folder), "holds no rows", "save the dataset again"))
    nulls = sum(t[caption_column].null_count for t in tables if caption_column in t.column_names)
    return Table(files, tuple(table.num_rows for table in tables), tables[0].schema, nulls)


def _read_arrow(path: Path) -> Any:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _opened(path: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of a file; its failures as JobError."""
    import pyarrow as pa

    try:
        check_pointer(path)
        return read(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of names in a damaged footer
        if isinstance(error, OSError) and error.errno is not None:
            raise JobError(unreadable(path, error)) from error
        found = f"is damaged or truncated ({str(error).splitlines()[0]})"
        raise JobError(bad_input(shown(path), found, _AGAIN)) from error


def read_values(table: Table, column: str, rows: Sequence[int]) -> dict[int, Any]:
    """Row → value of one column, for a few rows in rising order; little else is read. Raises JobError."""
    values: dict[int, Any] = {}
    starts = [0, *accumulate(table.row_counts)]
    for number, group in groupby(rows, key=lambda row: bisect_right(starts, row) - 1):
        path, start = table.files[number], starts[number]
        read = _parquet_values if path.suffix == ".parquet" else _arrow_values
        local = _opened(path, partial(read, column, [row - start for row in group]))
        values |= {row + start: value for row, value in local.items()}
    return values


def column_values(table: Table, column: str) -> Iterator[Any]:
    """The values of one column in order, read as they are asked for. Raises JobError."""
    for path in table.files:
        for chunk in _opened(path, partial(_chunks, column)):
            yield from chunk.to_pylist()


def _chunks(column: str, path: Path) -> Iterator[Any]:
    if path.suffix != ".parquet":
        yield from _read_arrow(path)[column].chunks
        return
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        for batch in file.iter_batches(_CHUNK, columns=[column]):
            yield batch.column(0)


def _arrow_values(column: str, rows: Sequence[int], path: Path) -> dict[int, Any]:
    values = _read_arrow(path)[column]
    return {row: values[row].as_py() for row in rows}


def _parquet_values(column: str, rows: Sequence[int], path: Path) -> dict[int, Any]:
    """Reads only the row groups that hold the rows, in small batches, up to the last row needed.

    A reader cannot jump inside a row group, so of a very large one rows near its front stand for the rest.
    """
    import pyarrow.parquet as pq

    values: dict[int, Any] = {}
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        starts = [0, *accumulate(group.num_rows for group in groups)]
        for number, wanted in groupby(rows, key=lambda row: bisect_right(starts, row) - 1):
            start, group = starts[number], groups[number]
            near = max(1, group.num_rows * _GROUP_BYTES // max(1, group.total_byte_size))
            local = sorted({(row - start) % near for row in wanted})
            first = 0
            for batch in file.iter_batches(_BATCH, [number], [column]):
                here = [row for row in local if first <= row < first + batch.num_rows]
                values |= {row + start: batch.column(0)[row - first].as_py() for row in here}
                first += batch.num_rows
                if first > local[-1]:
                    break
    return values
