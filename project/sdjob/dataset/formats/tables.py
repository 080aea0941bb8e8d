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

from sdjob.dataset.formats import Columns, DatasetInfo, Format
from sdjob.files import Listing, check_pointer, few, shown, unreadable
from sdjob.problems import JobError, Problem, bad_input

if TYPE_CHECKING:
    import pyarrow as pa

ReadColumn = Callable[[Path, str], Iterator[Any]]  # file, column → its values, read lazily
ReadRows = Callable[[Path, str, Sequence[int]], dict[int, Any]]  # file, column, rows → values by row


def table_format(
    name: str,
    description: str,
    detect: Callable[[Listing, bool], bool],
    inspect: Callable[[Listing, Columns], DatasetInfo],
    read_column: ReadColumn,
    read_rows: ReadRows,
    open_rows: Callable[[DatasetInfo, Path | None, Callable[[], None]], ArrowRows],
) -> Format:
    """A format whose files are tables; the first arguments are those of Format."""
    return Format(
        name,
        description,
        detect,
        inspect,
        partial(_captions, read_column),
        open_rows,
        name_of=row_name,
        images=partial(_images, read_column),
        sample=partial(_sample, read_rows),
        packages=("pyarrow",),
    )


def checked(info: DatasetInfo, schema: pa.Schema, empty_captions: int) -> DatasetInfo:
    """The dataset itself, if its columns hold what they must. Raises JobError."""
    columns = Columns(info.image_column, info.caption_column)
    problems = list(_column_problems(shown(info.path), schema, columns))
    if empty_captions:
        found = f"{empty_captions:,} of {info.num_examples:,} rows have nothing in column {columns.caption!r}"
        problems.append(bad_input(shown(info.path), found, "remove these rows, or give them captions"))
    if not info.num_examples:
        problems.append(bad_input(shown(info.path), "has no rows", "save or download the dataset again"))
    if problems:
        raise JobError(problems)
    return info


def _column_problems(subject: str, schema: pa.Schema, columns: Columns) -> Iterator[Problem]:
    wanted = [("image_column", columns.image, _holds_images, "images (bytes, or {bytes, path})")]
    if columns.caption:
        wanted.append(("caption_column", columns.caption, _holds_text, "text"))
    for setting, column, fits, content in wanted:
        if column not in schema.names:
            found = f"has no column {column!r}; its columns are {few(schema.names, 20)}"
        elif not fits(schema.field(column).type):
            found = f"column {column!r} holds {schema.field(column).type}, not {content}"
        else:
            continue
        yield bad_input(subject, found, f"set {setting} to the column that holds {content}")


def _holds_text(column_type: pa.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_string(column_type) or types.is_large_string(column_type))


def _holds_images(column_type: pa.DataType) -> bool:
    import pyarrow.types as types

    if types.is_struct(column_type):
        names = {column_type.field(number).name for number in range(column_type.num_fields)}
        return bool(names & {"bytes", "path"})
    return _holds_text(column_type) or bool(
        types.is_binary(column_type) or types.is_large_binary(column_type)
    )


def row_name(info: DatasetInfo, row: int) -> str:
    """ "file.parquet row N" of a row of the whole table, N from 0 within its file."""
    starts = [0, *accumulate(info.row_counts)]
    number = bisect_right(starts, row) - 1
    return f"{shown(info.files[number])} row {row - starts[number]}"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Failures to read this file as JobError."""
    import pyarrow as pa

    try:
        check_pointer(path)
        yield
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
        caption = self._table[self.info.caption_column][index].as_py()
        if caption is None:
            found, remedy = "the row has no caption", "remove this row, or give it a caption"
            raise JobError(bad_input(row_name(self.info, index), found, remedy))
        return str(caption)

    @cached_property
    def _table(self) -> pa.Table:
        import pyarrow as pa

        columns = [column for column in (self.info.image_column, self.info.caption_column) if column]
        return pa.concat_tables([mapped(path).select(columns) for path in self.files])

    def __getstate__(self) -> dict[str, Any]:
        return {"info": self.info, "files": self.files}  # without the table, which would be copied
