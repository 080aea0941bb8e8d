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
from itertools import accumulate, chain, groupby
from pathlib import Path
from typing import IO, Any

from sdjob.dataset.formats import Columns, DatasetInfo
from sdjob.dataset.formats.tables import ArrowRows, checked, reading, table_format
from sdjob.files import Listing, few, replacing, shown, user_cache
from sdjob.problems import JobError, Problem, bad_input, bad_output

_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])")
_SHARD = re.compile(r"(.*?)-(\d+)-of-(\d+)")
_GROUP_BYTES = 32 << 20  # rows are sampled from this much of a row group, whose front must be read
_SAMPLED_AT_ONCE = 8  # rows: those after the last one needed are read in vain
_AT_ONCE = 64  # rows in memory, each of which may be an image


def _detect(listing: Listing, captions: bool) -> bool:
    return any(name.endswith(".parquet") for name in listing.files)


def _inspect(listing: Listing, columns: Columns) -> DatasetInfo:
    every = [name for name in listing.files if name.endswith(".parquet")]
    names = train_files(every)
    if not names:
        found = f"holds other splits only: {few(every)}"
        raise JobError(bad_input(shown(listing.path), found, "add the files of the training split (train-*)"))
    if missing := missing_shards(names):
        found = f"{len(missing)} of its files are missing: {few(missing)}"
        raise JobError(bad_input(shown(listing.path), found, "copy or download the missing files"))
    paths = tuple(listing.path / name for name in names)
    footers = _footers(paths)
    schema = _common_schema(paths, footers)
    counts = tuple(int(footer.num_rows) for footer in footers)
    info = DatasetInfo(
        listing.path, PARQUET, paths, sum(counts), tuple(schema.names), columns.image, columns.caption, counts
    )
    caption = columns.caption if columns.caption in schema.names else None
    return checked(info, schema, sum(_nulls(path, caption) for path in paths) if caption else 0)


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


def _common_schema(paths: Sequence[Path], footers: Sequence[Any]) -> Any:
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    for path, schema in zip(paths, schemas, strict=True):
        if not schema.equals(schemas[0], check_metadata=False):
            found = f"has other columns than {paths[0].name}: {few(schema.names, 20)}"
            raise JobError(bad_input(shown(path), found, "keep files of one dataset in this folder"))
    return schemas[0]


def _nulls(path: Path, column: str) -> int:
    """Null values of a column: from the statistics of its row groups, else by reading this column alone."""
    import pyarrow.dataset as ds

    with reading(
        path
    ):  # not by pyarrow's metadata objects, whose C++ aborts the process on some damaged footers
        return int(ds.dataset(path, format="parquet").count_rows(filter=ds.field(column).is_null()))


def _file(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


def _batches(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    with reading(path), _file(path) as file:
        yield from file.iter_batches(_AT_ONCE, columns=columns)


def _column(path: Path, column: str) -> Iterator[Any]:
    for batch in _batches(path, [column]):
        yield from batch.column(0).to_pylist()


def _rows(path: Path, column: str, rows: Sequence[int]) -> dict[int, Any]:
    """Reads only the row groups that hold the rows, in small batches, up to the last row needed.

    A reader cannot jump inside a row group, so rows near the front of a very large one replace the others.
    """
    values: dict[int, Any] = {}
    with reading(path), _file(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        starts = [0, *accumulate(group.num_rows for group in groups)]
        for number, wanted in groupby(rows, key=lambda row: bisect_right(starts, row) - 1):
            start, group = starts[number], groups[number]
            near = max(1, group.num_rows * _GROUP_BYTES // max(1, group.total_byte_size))
            local = sorted({(row - start) % near for row in wanted})
            batches = file.iter_batches(_SAMPLED_AT_ONCE, [number], [column])
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
    """Several processes may call this at once; the files are converted once, until they change."""
    folder = cache or user_cache(os.environ) / "datasets"
    converted = folder / f"parquet-{_key(info)}.arrow"
    try:
        if not converted.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(converted, durable=True) as temporary, temporary.open("wb") as out:
                _convert(info, out, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space, or set cache_dir to a folder on a larger volume"
            raise JobError(bad_output(str(folder), f"is full ({error})", remedy)) from error
        found = f"cannot be converted in {folder} ({error})"
        raise JobError(bad_input(shown(info.path), found, "set cache_dir to a writable folder")) from error
    return ArrowRows(info, (converted,))


def _key(info: DatasetInfo) -> str:
    versions = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in info.files]
    columns = [info.image_column, info.caption_column]
    return hashlib.blake2b(json.dumps([versions, columns]).encode(), digest_size=16).hexdigest()


def _convert(info: DatasetInfo, out: IO[bytes], progress: Callable[[], None]) -> None:
    """Write the needed columns as one Arrow file. Raises OSError, JobError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [column for column in (info.image_column, info.caption_column) if column]
    known = pq.read_schema(info.files[0])
    schema = pa.schema([known.field(column) for column in columns])
    with pa.ipc.new_stream(out, schema) as writer:
        for batch in chain.from_iterable(_batches(path, columns) for path in info.files):
            arrays = [batch.column(column) for column in columns]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            progress()


PARQUET = table_format("parquet", "parquet files", _detect, _inspect, _column, _rows, _open)
