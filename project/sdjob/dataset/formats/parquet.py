"""Parquet files: counted by their footers and sampled without reading them; converted to Arrow for training."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import Any

from sdjob.children.bounded import MEMORY, in_child, working_on
from sdjob.dataset import splits
from sdjob.dataset.formats import DatasetInfo, Wanted
from sdjob.dataset.formats.column_types import as_type, plain
from sdjob.dataset.formats.tables import ArrowRows, checked, mapped, memory_for, reading, table_format
from sdjob.file_identity import EDGE, content_id
from sdjob.files import Listing, few, shown, suffix_of, user_cache
from sdjob.problems import JobError, Problem, bad_input, bad_output
from sdjob.reading import in_threads
from sdjob.writing import replacing

_SHARD = re.compile(r"(.*?)-(\d+)-of-(\d+)")
_GROUP_BYTES = 32 << 20  # rows are sampled from this much of a row group, whose front must be read
_SAMPLED_AT_ONCE = 8  # rows: those after the last one needed are read in vain
_NAMED_ROWS = 3  # without a caption
_VERSION = 2  # of what the cache holds
_AT_ONCE = 64  # rows in memory, each of which may be an image
_BYTES_AT_ONCE = 64 << 20  # of them
_UNFOLDED = 100  # times the size of a file, beyond MEMORY, that its rows may take


def _detect(listing: Listing, captions: bool) -> bool:
    return any(map(_is_parquet, listing.files))


def _is_parquet(name: str) -> bool:
    return suffix_of(name) == ".parquet"


def _inspect(listing: Listing, wanted: Wanted) -> DatasetInfo:
    every = tuple(filter(_is_parquet, listing.files))
    choice = splits.choose(every, wanted.splits)
    if choice is None:
        raise JobError(splits.refused(shown(listing.path), every, wanted.splits))
    if missing := missing_shards(choice.names):
        found = f"{len(missing)} of its files are missing: {few(missing)}"
        raise JobError(bad_input(shown(listing.path), found, "copy or download the missing files"))
    paths = tuple(listing.path / name for name in choice.names)
    footers = _footers(paths)
    schemas = _schemas(paths, footers)
    counts = tuple(int(footer.num_rows) for footer in footers)
    names, columns = tuple(schemas[0].names), (wanted.image, wanted.caption)
    info = DatasetInfo(listing.path, PARQUET, paths, sum(counts), names, *columns, counts, choice.split)
    filled = next((path for path, count in zip(paths, counts, strict=True) if count), None)

    def first(column: str) -> list[Any]:
        return list(islice(_column(filled, column, 1), 1)) if filled else []

    return checked(info, schemas, first, partial(_nulls, info, footers))


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


def _footers(paths: Sequence[Path]) -> list[Any]:
    """Raises JobError with every file that cannot be read."""
    import pyarrow.parquet as pq

    footers: list[Any] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            with reading(path):
                footers.append(pq.read_metadata(path))
        except JobError as error:
            problems += error.problems
    if problems:
        raise JobError(problems)
    return footers


def _schemas(paths: Sequence[Path], footers: Sequence[Any]) -> list[Any]:
    """Their order of columns may differ. Raises JobError where the columns themselves differ."""
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    for path, schema in zip(paths, schemas, strict=True):
        if sorted(schema.names) != sorted(schemas[0].names):
            found = f"has other columns than {paths[0].name}: {few(schema.names, 20)}"
            raise JobError(bad_input(shown(path), found, "keep files of one dataset in this folder"))
    return schemas


def _nulls(info: DatasetInfo, footers: Sequence[Any], column: str) -> list[int]:
    """The first rows that have nothing in a column, and their number; nothing if there is none."""
    counts = [_null_count(path, footer, column) for path, footer in zip(info.files, footers, strict=True)]
    if not any(counts):
        return []
    number = next(number for number, count in enumerate(counts) if count)
    start = sum(info.row_counts[:number])
    values = enumerate(_column(info.files[number], column), start)
    return [*islice((row for row, value in values if value is None), _NAMED_ROWS), sum(counts)]


def _null_count(path: Path, footer: Any, column: str) -> int:
    """From the statistics of its row groups, else by reading this column alone."""
    with reading(path):
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        statistics = [chunk.statistics for chunk in chunks if chunk.path_in_schema == column]
    if all(each is not None and each.has_null_count for each in statistics):
        return sum(each.null_count for each in statistics)
    return sum(batch.column(0).null_count for batch in _batches(path, [column]))


def _file(path: Path, columns: Sequence[str]) -> Any:
    """Columns of texts and bytes as dictionaries: what many rows repeat is in memory once."""
    import pyarrow.parquet as pq

    footer = pq.read_metadata(path)
    leaves = [footer.schema.column(number) for number in range(footer.num_columns)]
    repeated = [
        leaf.path
        for leaf in leaves
        if leaf.physical_type == "BYTE_ARRAY"
        and leaf.max_repetition_level == 0
        and leaf.path.partition(".")[0] in columns
    ]
    return pq.ParquetFile(
        path, metadata=footer, pre_buffer=False, buffer_size=1 << 20, read_dictionary=repeated
    )


def _batches(path: Path, columns: Sequence[str], rows: int = _AT_ONCE) -> Iterator[Any]:
    with reading(path), _file(path, columns) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        rows = max(1, min(rows, _BYTES_AT_ONCE // max(1, largest)))
        yield from file.iter_batches(rows, columns=columns, use_threads=False)


def _column(path: Path, column: str, rows: int = _AT_ONCE) -> Iterator[Any]:
    for batch in _batches(path, [column], rows):
        yield from (value.as_py() for value in batch.column(0))


def _rows(path: Path, column: str, rows: Sequence[int]) -> dict[int, Any]:
    """Reads only the row groups that hold the rows, in small batches, up to the last row needed.

    A reader cannot jump inside a row group, so rows near the front of a very large one replace the others.
    """
    values: dict[int, Any] = {}
    with reading(path), _file(path, [column]) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        starts = [0, *accumulate(group.num_rows for group in groups)]
        for number, wanted in groupby(rows, key=lambda row: bisect_right(starts, row) - 1):
            start, group = starts[number], groups[number]
            near = max(1, group.num_rows * _GROUP_BYTES // max(1, group.total_byte_size))
            local = sorted({(row - start) % near for row in wanted})
            batches = file.iter_batches(_SAMPLED_AT_ONCE, [number], [column], use_threads=False)
            values |= {row + start: value for row, value in _picked(batches, local)}
    return values


def _picked(batches: Iterable[Any], rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(row, value) of these rows; nothing is read after the last of them."""
    first = 0
    for batch in batches:
        after = first + batch.num_rows
        yield from ((row, batch.column(0)[row - first].as_py()) for row in rows if first <= row < after)
        if after > rows[-1]:
            return
        first = after


def _open(info: DatasetInfo, cache: Path | None, progress: Callable[[], None]) -> ArrowRows:
    """Several processes may call this at once; the files are converted once, until their content changes."""
    folder = cache or user_cache(os.environ) / "datasets"
    converted = folder / f"parquet-{_key(info)}.arrow"
    try:
        if not _is_whole(converted, info):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(converted, durable=True) as temporary:
                subject, memory = shown(info.path), memory_for(info)
                in_child(_convert, info, temporary, subject=subject, memory=memory, progress=progress)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Free some space, or set" if full else "Set"
        remedy += f" cache_dir to a folder {'on a larger volume' if full else 'that can be written'}."
        raise JobError(bad_output(str(folder), f"cannot hold converted files ({error})", remedy)) from error
    return ArrowRows(info, (converted,))


def _is_whole(converted: Path, info: DatasetInfo) -> bool:
    """Whether an earlier start has left all rows there."""
    try:
        return converted.exists() and mapped(converted).num_rows == info.num_examples
    except JobError:  # damaged: it is converted again
        return False


def _key(info: DatasetInfo) -> str:
    """A hash of the files' content, in their order, and of the columns."""
    contents = in_threads(_content, info.files)
    facts = [_VERSION, contents, info.row_counts, info.image_column, info.caption_column]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def _content(path: Path) -> str:
    """The identity of a file, with all of its footer. Raises JobError."""
    with reading(path):
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - 8))
            footer = int.from_bytes(file.read(4), "little")  # its length, before the mark at the end
        return content_id(path, tail=min(size, max(EDGE, footer + 8)))


def _convert(info: DatasetInfo, target: Path) -> None:
    """Write the needed columns as one Arrow file, in the types of the first. Raises OSError, JobError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [column for column in (info.image_column, info.caption_column) if column]
    known = pq.read_schema(info.files[0])
    schema = pa.schema([(column, plain(known.field(column).type)) for column in columns])
    with target.open("wb") as out, pa.ipc.new_stream(out, schema) as writer:
        for path in info.files:
            most = out.tell() + MEMORY + _UNFOLDED * path.stat().st_size
            for batch in _batches(path, columns):
                arrays = [as_type(batch.column(column), schema.field(column).type) for column in columns]
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
                working_on(shown(path))
                if out.tell() > most:
                    found = f"unfolds to more than {_UNFOLDED} times its size"
                    raise JobError(bad_input(shown(path), found, "save it without repeating its rows"))


PARQUET = table_format("parquet", "parquet files", _detect, _inspect, _column, _rows, _open)
