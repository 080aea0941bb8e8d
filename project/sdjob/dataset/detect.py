"""Recognising a dataset on disk: its format, files, columns and size, before any image is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from sdjob.dataset.formats.metadata import FILE_NAME, METADATA_NAMES, metadata_file, read_metadata
from sdjob.dataset.formats.parquet import (
    Table,
    missing_shards,
    parquet_table,
    read_values,
    saved_table,
    train_files,
)
from sdjob.dataset.images import decode, is_image_name, source_of, undecodable
from sdjob.files import (
    Listing,
    below,
    few,
    list_folder,
    open_listing,
    read_json,
    shown,
    suffix_of,
    unreadable,
)
from sdjob.problems import JobError, Problem, bad_input

if TYPE_CHECKING:
    import pyarrow as pa

    from sdjob.settings.run_spec import RunSpec

Format = Literal["folder", "metadata", "parquet", "saved"]

TXT_CAPTIONS = ".txt"  # the caption "column" of a folder where a.jpg has its caption in a.txt
_SAVED_MARKS = (("dataset_dict.json",), ("state.json", "dataset_info.json"))  # of save_to_disk
_MAX_DEPTH = 4
_FORMATS = (
    "give a folder of images (jpg, png, webp, bmp, gif, tiff), images with metadata.jsonl or "
    "metadata.csv, parquet files, or a dataset saved with datasets' save_to_disk"
)
_CAPTIONS = (
    'add a metadata.jsonl with a line {"file_name": "a.jpg", "text": "its caption"} an image, '
    "or a .txt beside each image; to train a subject without captions use recipe=dreambooth"
)


@dataclass(frozen=True)
class Files(Sequence[Path]):
    """Files of one folder as a sequence of paths, made when asked for: a million of them take seconds."""

    folder: Path
    names: tuple[str, ...] = field(repr=False)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Files: ...
    def __getitem__(self, index: int | slice) -> Path | Files:
        if isinstance(index, slice):
            return replace(self, names=self.names[index])
        return self.folder / self.names[index]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset that can be read, as far as can be told without decoding it."""

    path: Path
    format: Format
    files: Sequence[Path]  # the images in order, or the files of the table
    num_examples: int
    columns: tuple[str, ...]
    image_column: str
    caption_column: str | None  # None: captions were not asked for


def find_dataset(
    root: Path, name: str | None, *, captions: bool, image_column: str, caption_column: str
) -> DatasetInfo:
    """The dataset under a mount. Raises JobError with everything that is wrong with it."""
    place = below(root, name, "dataset_name", lambda listing: _format_of(listing, captions) is not None)
    listing, kind = _locate(place, captions)
    if kind == "folder":
        return _image_folder(listing, captions)
    if kind == "metadata":
        return _metadata_folder(listing, caption_column if captions else None)
    if kind == "parquet":
        return _parquet(listing, image_column, caption_column if captions else None)
    return _saved(listing, image_column, caption_column if captions else None)


def dataset_in(folder: str | Path, spec: RunSpec, *, captions: bool) -> DatasetInfo:
    """The dataset of a run in this folder. Raises JobError (66)."""
    columns = {"image_column": spec.image_column, "caption_column": spec.caption_column}
    return find_dataset(Path(folder), None, captions=captions, **columns)


def _format_of(listing: Listing, captions: bool) -> Format | None:
    """What a folder by itself is. Without captions, images need no metadata."""
    if any(all(mark in listing.files for mark in marks) for marks in _SAVED_MARKS):
        return "saved"
    images = any(is_image_name(name) for name in listing.files)
    if (captions or not images) and any(name in listing.files for name in METADATA_NAMES):
        return "metadata"
    if any(name.endswith(".parquet") for name in listing.files):
        return "parquet"
    return "folder" if images else None


def _locate(place: Path, captions: bool) -> tuple[Listing, Format]:
    """The one dataset at a place or below it; "train" where its neighbours are other splits."""
    top = open_listing(place)
    seen: list[Listing] = []
    problems: list[Problem] = []
    found = list(_search(top, captions, _MAX_DEPTH, seen, problems))
    if captions:
        found = [pair for pair in found if not _is_bare(*pair)] or found[:1]
    if len(found) > 1:
        found = [pair for pair in found if pair[0].path.name == "train"] or found
    if len(found) == 1:
        return found[0]
    if found:
        names = [str(listing.path.relative_to(place)) for listing, _ in found]
        raise JobError(
            bad_input(
                shown(place),
                f"holds {len(found)} datasets: {few(names)}",
                f"set dataset_name to one of them, for example dataset_name={shown(found[0][0].path)}",
            )
        )
    looked = "; ".join(f"{shown(listing.path)}: {listing.summary()}" for listing in seen[:4])
    raise JobError(
        [*problems, bad_input(shown(place), f"no dataset here or below; found {looked}", _FORMATS)]
    )


def _search(
    listing: Listing, captions: bool, depth: int, seen: list[Listing], problems: list[Problem]
) -> Iterator[tuple[Listing, Format]]:
    """The datasets at and below a folder. Below a dataset nothing is looked for, but where captions are
    needed, for images that have none can be a preview beside the data."""
    seen.append(listing)
    kind = _format_of(listing, captions)
    if kind:
        yield listing, kind
    if depth and (kind is None or (captions and _is_bare(listing, kind))):
        for name in listing.folders:
            try:
                inner = list_folder(listing.path / name)
            except OSError as error:
                problems.append(unreadable(listing.path / name, error))
                continue
            yield from _search(inner, captions, depth - 1, seen, problems)


def _is_bare(listing: Listing, kind: Format) -> bool:
    """A folder of images none of which has its caption in a .txt of its name."""
    if kind != "folder":
        return False
    texts = {_stem(name) for name in listing.files if name.endswith(TXT_CAPTIONS)}
    return not texts or not any(is_image_name(name) and _stem(name) in texts for name in listing.files)


def _stem(name: str) -> str:
    return name[: len(name) - len(suffix_of(name))]


def _image_folder(listing: Listing, captions: bool) -> DatasetInfo:
    names = tuple(name for name in listing.files if is_image_name(name))
    if captions:
        texts = {_stem(name) for name in listing.files if name.endswith(TXT_CAPTIONS)}
        bare = [name for name in names if _stem(name) not in texts]
        if bare:
            found = f"{len(bare):,} of {len(names):,} images have no caption: {few(bare)}"
            raise JobError(bad_input(shown(listing.path), found, _CAPTIONS))
    files = Files(listing.path, names)
    columns = ("image", TXT_CAPTIONS) if captions else ("image",)
    return DatasetInfo(
        listing.path, "folder", files, len(files), columns, "image", TXT_CAPTIONS if captions else None
    )


def _metadata_folder(listing: Listing, caption_column: str | None) -> DatasetInfo:
    metadata = read_metadata(metadata_file(listing.path), caption_column)
    files = Files(listing.path, metadata.names)
    return DatasetInfo(
        listing.path, "metadata", files, len(files), metadata.columns, FILE_NAME, caption_column
    )


def _parquet(listing: Listing, image_column: str, caption_column: str | None) -> DatasetInfo:
    here = [name for name in listing.files if name.endswith(".parquet")]
    names = train_files(here)
    if not names:
        found = f"holds other splits only: {few(here)}"
        raise JobError(bad_input(shown(listing.path), found, "add the files of the training split (train-*)"))
    if missing := missing_shards(names):
        found = f"{len(missing)} of its files are missing: {few(missing)}"
        raise JobError(bad_input(shown(listing.path), found, "copy or download the missing files"))
    files = tuple(listing.path / name for name in names)
    table = parquet_table(files, caption_column)
    return _checked(listing.path, "parquet", files, table, image_column, caption_column)


def _saved(listing: Listing, image_column: str, caption_column: str | None) -> DatasetInfo:
    folder = listing.path
    if "dataset_dict.json" in listing.files:
        folder = folder / _split_of(folder / "dataset_dict.json")
    table = saved_table(folder, caption_column)
    return _checked(folder, "saved", table.files, table, image_column, caption_column)


def _split_of(path: Path) -> str:
    """The split of a saved DatasetDict to train on: "train", or the only one."""
    try:
        splits = [str(split) for split in read_json(path)["splits"]]
    except (KeyError, TypeError) as error:
        raise JobError(bad_input(shown(path), f"is not readable ({error!r})", "save it again")) from error
    if "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else splits[0]
    found = f"has no split named train; it has {few(splits) or 'none'}"
    raise JobError(bad_input(shown(path.parent), found, "set dataset_name to the folder of one split"))


def _checked(
    path: Path,
    kind: Format,
    files: tuple[Path, ...],
    table: Table,
    image_column: str,
    caption_column: str | None,
) -> DatasetInfo:
    """A table whose columns hold what they must. Raises JobError."""
    problems = list(_column_problems(path, table.schema, image_column, caption_column))
    if table.nulls:
        found = f"{table.nulls:,} of {table.num_rows:,} rows have nothing in column {caption_column!r}"
        problems.append(bad_input(shown(path), found, "take these rows out, or give them captions"))
    if not table.num_rows:
        problems.append(bad_input(shown(path), "has no rows", _FORMATS))
    if problems:
        raise JobError(problems)
    columns = tuple(table.schema.names)
    return DatasetInfo(path, kind, files, table.num_rows, columns, image_column, caption_column)


def _column_problems(
    path: Path, schema: pa.Schema, image_column: str, caption_column: str | None
) -> Iterator[Problem]:
    import pyarrow.types as types

    def is_text(kind: pa.DataType) -> bool:
        return bool(types.is_string(kind) or types.is_large_string(kind))

    def is_image(kind: pa.DataType) -> bool:
        fields = {kind.field(number).name for number in range(kind.num_fields)}
        packed = types.is_struct(kind) and bool(fields & {"bytes", "path"})
        return packed or is_text(kind) or bool(types.is_binary(kind) or types.is_large_binary(kind))

    wanted = [("image_column", image_column, is_image, "images (bytes, or {bytes, path})")]
    if caption_column:
        wanted.append(("caption_column", caption_column, is_text, "text"))
    for setting, column, fits, what in wanted:
        if column not in schema.names:
            found = f"has no column {column!r}; its columns are {few(schema.names, 20)}"
            yield bad_input(shown(path), found, f"set {setting} to the column that holds {what}")
        elif not fits(schema.field(column).type):
            found = f"column {column!r} holds {schema.field(column).type}, not {what}"
            yield bad_input(shown(path), found, f"set {setting} to the column that holds {what}")


def table_of(info: DatasetInfo) -> Table:
    """The table behind a parquet or saved dataset."""
    if info.format == "saved":
        return saved_table(info.path, info.caption_column)
    return parquet_table(tuple(info.files), info.caption_column)


def spread(count: int, limit: int) -> list[int]:
    """Up to `limit` of the numbers 0 … count - 1, evenly spread, first and last among them."""
    if count <= limit:
        return list(range(count))
    return sorted({round(i * (count - 1) / max(1, limit - 1)) for i in range(limit)})


def verify_sample(info: DatasetInfo, limit: int) -> list[Problem]:
    """Decodes up to `limit` examples, evenly spread, and names each that cannot be."""
    rows = spread(info.num_examples, limit)
    if info.format in ("folder", "metadata"):
        bad = undecodable(rows, lambda row: shown(info.files[row]), lambda row: decode(info.files[row]))
        return sorted(bad.values())
    table = table_of(info)
    try:
        values = read_values(table, info.image_column, rows)
    except JobError as error:
        return list(error.problems)
    bad = undecodable(list(values), table.row_name, lambda row: decode(source_of(values[row], info.path)))
    return sorted(bad.values())
