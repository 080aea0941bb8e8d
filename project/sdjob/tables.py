"""Data sets in tables: parquet files, and what `datasets` saved. Counted and sampled without reading them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdjob.folders import check_pointer, few, read_json, unreadable
from sdjob.problem import JobError, Problem, bad_input

if TYPE_CHECKING:
    import pyarrow as pa

_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])")
_SHARD = re.compile(r"(.*?)-(\d+)-of-(\d+)")
_GROUP_BYTES = 256 << 20  # rows are sampled from this much of a row group, whose front must be read
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
        return f"{self.files[number]} row {row - (ends[number - 1] if number else 0)}"


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
            raise JobError(bad_input(str(path), found, "keep files of one data set in this folder"))
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
        raise JobError(bad_input(str(path), f"is not readable ({error!r})", "save it again")) from error
    return tuple(folder / name for name in names)


def saved_table(folder: Path, caption_column: str | None) -> Table:
    """A folder written by `Dataset.save_to_disk`; its files are mapped, not read. Raises JobError."""
    files = saved_files(folder)
    tables = [_opened(path, _read_arrow) for path in files]
    if not tables:
        raise JobError(bad_input(str(folder), "holds no rows", "save the data set again"))
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
    except pa.ArrowInvalid as error:
        found = f"is damaged or truncated ({str(error).splitlines()[0]})"
        raise JobError(bad_input(str(path), found, _AGAIN)) from error
    except OSError as error:
        raise JobError(unreadable(path, error)) from error


def read_values(table: Table, column: str, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(row, value) of a few rows, given in rising order, of one column; little more than they is read."""
    starts = [0, *accumulate(table.row_counts)]
    for number, group in groupby(rows, key=lambda row: bisect_right(starts, row) - 1):
        path, start = table.files[number], starts[number]
        local = [row - start for row in group]
        read = _parquet_values if path.suffix == ".parquet" else _arrow_values
        for row, value in read(path, column, local):
            yield row + start, value


def _arrow_values(path: Path, column: str, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    values = _read_arrow(path)[column]
    for row in rows:
        yield row, values[row].as_py()


def _parquet_values(path: Path, column: str, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Reads only the row groups that hold the rows, in small batches, up to the last row needed.

    A reader cannot jump inside a row group, so of a very large one rows near its front stand for the rest.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, buffer_size=1 << 20) as file:
        sizes = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        starts = [0, *accumulate(size.num_rows for size in sizes)]
        for number, group in groupby(rows, key=lambda row: bisect_right(starts, row) - 1):
            near = max(1, sizes[number].num_rows * _GROUP_BYTES // max(1, sizes[number].total_byte_size))
            wanted = sorted({(row - starts[number]) % near for row in group})
            position = 0
            for batch in file.iter_batches(8, row_groups=[number], columns=[column]):
                while wanted and wanted[0] < position + batch.num_rows:
                    row = wanted.pop(0)
                    yield row + starts[number], batch.column(0)[row - position].as_py()
                position += batch.num_rows
                if not wanted:
                    break
