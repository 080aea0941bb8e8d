"""What the formats that hold images in the rows of a table share. Columns are checked, rows named and read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdjob.children.bounded import MEMORY, in_child, working_on
from sdjob.dataset.formats import DatasetInfo, Format, Wanted, column_types
from sdjob.files import Listing, check_pointer, few, shown, unreadable
from sdjob.problems import JobError, Problem, bad_input

if TYPE_CHECKING:
    import pyarrow as pa

_LARGE_FILE = 4 << 30  # bytes of memory that reading a large file may take: a page may be most of it

ReadColumn = Callable[[Path, str], Iterator[Any]]  # file, column → its values, read lazily
ReadRows = Callable[[Path, str, Sequence[int]], dict[int, Any]]  # file, column, rows → values by row


def table_format(
    name: str,
    description: str,
    detect: Callable[[Listing, bool], bool],
    inspect: Callable[[Listing, Wanted], DatasetInfo],
    read_column: ReadColumn,
    read_rows: ReadRows,
    open_rows: Callable[[DatasetInfo, Path | None, Callable[[], None]], ArrowRows],
) -> Format:
    """A format whose files are tables; the first arguments are those of Format."""
    return Format(
        name,
        description,
        detect,
        partial(_inspected, inspect),
        partial(_captions, read_column),
        open_rows,
        name_of=row_name,
        images=partial(_images, read_column),
        sample=partial(_sample, read_rows),
        packages=("pyarrow",),
    )


def _inspected(
    inspect: Callable[[Listing, Wanted], DatasetInfo], listing: Listing, wanted: Wanted
) -> DatasetInfo:
    return in_child(inspect, listing, wanted, subject=shown(listing.path))


def checked(
    info: DatasetInfo,
    schemas: Sequence[pa.Schema],
    first: Callable[[str], Sequence[Any]],
    nulls: Callable[[str], Sequence[int]],
) -> DatasetInfo:
    """The dataset itself, if its columns hold what they must. Raises JobError.

    `schemas`: of each file; `first`: a few values of a column; `nulls`: the first rows with nothing in it, and at the
    end their number.
    """
    caption = info.caption_column
    problems = list(_column_problems(info, schemas, first))
    if caption and all(schema.names.count(caption) == 1 for schema in schemas) and (found := nulls(caption)):
        *rows, count = found
        named = few(f"row {row} of {shown(info.files[number].name)}" for number, row in _located(info, rows))
        what = f"{count:,} of {info.num_examples:,} rows have nothing in column {caption!r}: {named}"
        problems.append(bad_input(shown(info.path), what, "remove these rows, or give them captions"))
    if not info.num_examples:
        problems.append(bad_input(shown(info.path), "has no rows", "save or download the dataset again"))
    if problems:
        raise JobError(problems)
    return info


_CONTENT = {"image_column": "images (bytes, or {bytes, path})", "caption_column": "text"}
_KINDS = {"image_column": ("struct", "bytes", "text"), "caption_column": ("text",)}
_ONE_CAPTION = "make a row for each caption, or a column with one caption for each image"
_IMAGES = {
    "URLs": "are not downloaded: download the images into a folder, with a metadata.jsonl for their captions",
    "base64 text": "is not decoded: save the column as bytes (base64.b64decode)",
}


def _column_problems(
    info: DatasetInfo, schemas: Sequence[pa.Schema], first: Callable[[str], Sequence[Any]]
) -> Iterator[Problem]:
    schema, subject = schemas[0], shown(info.path)
    for setting, column in (("image_column", info.image_column), ("caption_column", info.caption_column)):
        if column is None:
            continue
        remedy = f"set {setting} to the column that holds {_CONTENT[setting]}"
        if schema.names.count(column) != 1:
            found = f"has {schema.names.count(column) or 'no'} column {column!r}"
            columns = few([_described(name, schema, first) for name in schema.names], 20)
            yield bad_input(subject, f"{found}; its columns are {columns}", remedy)
            continue
        types = [each.field(column).type for each in schemas]
        kind = column_types.kind_of(types[0])
        if kind not in _KINDS[setting]:
            several = setting == "caption_column" and kind == "texts"
            found = f"column {column!r} holds {types[0]}, not {_CONTENT[setting]}"
            yield bad_input(subject, found, _ONE_CAPTION if several else remedy)
        elif setting == "image_column" and (what := _not_images(column, first)):
            yield bad_input(subject, f"column {column!r} holds {what}", f"{what} {_IMAGES[what]}")
        for number in column_types.differing(types):
            found = f"column {column!r} holds {types[number]}, and {types[0]} in {info.files[0].name}"
            yield bad_input(shown(info.files[number]), found, "save all files with the same types")


def _described(name: str, schema: pa.Schema, first: Callable[[str], Sequence[Any]]) -> str:
    """A column by its name, and what it holds where that looks like images but is not."""
    may_hold = schema.names.count(name) == 1 and column_types.kind_of(schema.field(name).type)
    what = _not_images(name, first) if may_hold in _KINDS["image_column"] else ""
    return f"{name} ({what})" if what else name


def _not_images(column: str, first: Callable[[str], Sequence[Any]]) -> str:
    try:
        return next(filter(None, map(column_types.not_an_image, first(column))), "")
    except JobError:  # damage is reported where images are decoded
        return ""


def _located(info: DatasetInfo, rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(number of the file, row in it) of rows of the whole table."""
    starts = [0, *accumulate(info.row_counts)]
    for row in rows:
        number = bisect_right(starts, row) - 1
        yield number, row - starts[number]


def row_name(info: DatasetInfo, row: int) -> str:
    """ "file.parquet row N" of a row of the whole table, N from 0 within its file."""
    ((number, local),) = _located(info, [row])
    return f"{shown(info.files[number])} row {local}"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Failures to read this file as JobError."""
    import pyarrow as pa

    working_on(shown(path))
    try:
        check_pointer(path)
        yield
    except MemoryError:  # pyarrow's own is one of its exceptions too
        raise
    except UnicodeEncodeError as error:
        found = "has a path that is not UTF-8, which pyarrow does not open"
        raise JobError(bad_input(shown(path), found, "rename the file or folder")) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: names in a damaged footer
        if isinstance(error, OSError) and error.errno is not None:
            raise JobError(unreadable(path, error)) from error
        found = f"is damaged or truncated ({str(error).splitlines()[0]})"
        raise JobError(bad_input(shown(path), found, "copy or download this file again")) from error


def mapped(path: Path) -> pa.Table:
    """An Arrow file, mapped into memory. Raises JobError."""
    import pyarrow as pa

    with reading(path):
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def memory_for(info: DatasetInfo) -> int:
    """Bytes that reading a table may take: in proportion to its files, whatever they claim to hold."""
    largest = max((path.stat().st_size for path in info.files), default=0)
    return MEMORY + min(2 * largest, _LARGE_FILE)


def _captions(read: ReadColumn, info: DatasetInfo) -> Iterator[str]:
    """The captions that are there."""
    if info.caption_column:
        for path in info.files:
            yield from (str(value) for value in read(path, info.caption_column) if value is not None)


def _images(read: ReadColumn, info: DatasetInfo) -> Iterator[Any]:
    for path in info.files:
        yield from read(path, info.image_column)


def _sample(read: ReadRows, info: DatasetInfo, rows: Sequence[int]) -> dict[int, Any]:
    """Images of a few rows, in ascending order."""
    values: dict[int, Any] = {}
    starts = [0, *accumulate(info.row_counts)]
    for number, group in groupby(rows, key=lambda row: bisect_right(starts, row) - 1):
        start = starts[number]
        local = read(info.files[number], info.image_column, [row - start for row in group])
        values |= {row + start: value for row, value in local.items()}
    return values


@dataclass(frozen=True)
class ArrowRows:
    """Rows of Arrow files, mapped into memory on the first access in each process."""

    info: DatasetInfo
    files: tuple[Path, ...]

    def image(self, index: int) -> Any:
        return self._table[self.info.image_column][index].as_py()

    def caption(self, index: int) -> str | None:
        if self.info.caption_column is None:
            return None
        try:
            caption = self._table[self.info.caption_column][index].as_py()
        except UnicodeDecodeError as error:
            found, remedy = f"the caption is not UTF-8 text ({error})", "write the caption again, as UTF-8"
            raise JobError(bad_input(row_name(self.info, index), found, remedy)) from error
        if caption is None:
            found, remedy = "the row has no caption", "remove this row, or give it a caption"
            raise JobError(bad_input(row_name(self.info, index), found, remedy))
        return str(caption)

    @cached_property
    def _table(self) -> pa.Table:
        import pyarrow as pa

        columns = [column for column in (self.info.image_column, self.info.caption_column) if column]
        tables = [mapped(path).select(columns) for path in self.files]
        return pa.concat_tables(tables, promote_options="permissive")

    def __getstate__(self) -> dict[str, Any]:
        return {"info": self.info, "files": self.files}  # without the table, which would be copied
