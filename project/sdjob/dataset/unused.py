"""What looks like data below a folder and is not used: every file but those of the dataset, by what it is and why."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from posixpath import join

from sdjob.children.bounded import in_child
from sdjob.dataset.detect import MAX_DEPTH, relative
from sdjob.dataset.formats import DatasetInfo, Files
from sdjob.dataset.formats.folder import CAPTION_SUFFIXES
from sdjob.dataset.formats.tables import reading
from sdjob.dataset.image_formats import remedy_for
from sdjob.dataset.images import is_image_name
from sdjob.dataset.splits import UNNAMED, split_of
from sdjob.files import Listing, few, list_folder, shown, suffix_of
from sdjob.formatting import counted
from sdjob.problems import JobError

_COUNTED = 100  # files
_TABLES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".xlsx"})
_ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
_ABOUT = frozenset({"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"})
_CAPTION_FILES = f"metadata.jsonl, metadata.csv, or {' or '.join(CAPTION_SUFFIXES)} files"
_IMAGE, _CAPTION, _TABLE, _ARCHIVE = "image", "caption", "table", "archive"


@dataclass(frozen=True)
class Unused:
    """Files of one kind that are not used for one reason."""

    kind: str  # "image", …
    reason: str
    names: tuple[str, ...]  # below the folder that was searched
    split: str = UNNAMED  # of which split they are, where that is the reason

    def __str__(self) -> str:
        return f"{counted(len(self.names), self.kind)} {self.reason}: {few(self.names, 3)}"


@dataclass(frozen=True)
class Search:
    """What was found, and whether the time sufficed for all folders."""

    unused: tuple[Unused, ...]
    is_whole: bool


def find_unused(info: DatasetInfo, root: Path, until: float) -> Search:
    """What is not used at and below `root`; ends with what was found by then (time.monotonic())."""
    used = _used(info)
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    is_whole = True
    for listing in _folders(root, info.path):
        if time.monotonic() > until:
            is_whole = False
            break
        place = relative(root, listing.path)
        reader = relative(info.path, listing.path)
        has_images = any(map(is_image_name, listing.files))
        for name in listing.files:
            kind = _kind(name, listing, info, has_images)
            if not kind or (reader is not None and join(reader, name) in used):
                continue
            path = join(place or "", name)
            split, reason = _reason(info, kind, path, reader)
            groups[kind, reason, split].append(path)
    found = (Unused(kind, reason, tuple(names), split) for (kind, reason, split), names in groups.items())
    return Search(tuple(sorted(found, key=lambda each: (each.kind, each.reason))), is_whole)


def _used(info: DatasetInfo) -> set[str]:
    """Names below the folder of the dataset."""
    names: set[str] = set()
    for files in (info.files, info.companions):
        if isinstance(files, Files) and files.folder == info.path:
            names.update(map(os.path.normpath, files.names))
        else:
            names.update(os.path.relpath(path, info.path) for path in files)
    return names


def _folders(root: Path, data: Path) -> Iterator[Listing]:
    """All folders that the search for the dataset looks at, and those below the dataset itself."""
    waiting = [(root, MAX_DEPTH)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            listing = list_folder(folder)
        except OSError:  # reported where the dataset is searched for
            continue
        yield listing
        depth = MAX_DEPTH if folder == data else depth
        waiting += [(folder / name, depth - 1) for name in reversed(listing.folders) if depth]


def _kind(name: str, listing: Listing, info: DatasetInfo, has_images: bool) -> str:
    """What a file looks like; "" for what is not data."""
    if is_image_name(name) or remedy_for(suffix_of(name)[1:]):
        return _IMAGE
    suffix = suffix_of(name)
    if suffix in _TABLES:
        may_be_captions = suffix not in (".parquet", ".arrow", ".feather")
        return "" if name in _ABOUT or (may_be_captions and info.caption_column is None) else _TABLE
    if suffix in _ARCHIVES:
        return _ARCHIVE
    # Captions of images that are not used need not be said too; without captions, all are unread.
    of_data = listing.path == info.path and has_images and info.caption_column is not None
    return _CAPTION if suffix in CAPTION_SUFFIXES and of_data else ""


def _reason(info: DatasetInfo, kind: str, path: str, reader: str | None) -> tuple[str, str]:
    """The split of a file where that is why it is not used, and the reason in words."""
    split = split_of(path if kind == _TABLE else str(PurePath(path).parent))
    if split not in (UNNAMED, info.split) and kind in (_IMAGE, _TABLE):
        return split, f"of the split {split}"
    if remedy := remedy_for(suffix_of(path)[1:]):
        return UNNAMED, f"of a format that is not read ({remedy})"
    if kind == _ARCHIVE:
        return UNNAMED, "not unpacked"
    if kind == _CAPTION:
        return UNNAMED, "without an image, or next to another caption of the same image"
    if kind == _TABLE and info.format.name == "parquet" and suffix_of(path) == ".parquet" and reader == "":
        return UNNAMED, "of no split"
    if kind == _TABLE:
        return UNNAMED, f"not read (captions come from {_CAPTION_FILES})"
    if reader is not None and info.companions and info.format.name == "metadata":
        return UNNAMED, f"without a line in {info.companions[0].name}"
    if reader:
        return UNNAMED, "in folders below the one that is used"
    return UNNAMED, "in other folders"


def rows_in(root: Path, unused: Unused) -> str:
    """How many rows the parquet files among them hold, where their footers say it."""
    files = [root / name for name in unused.names if suffix_of(name) == ".parquet"][:_COUNTED]
    if not files:
        return ""
    try:
        rows = in_child(_rows, files, subject=shown(root))
    except JobError:  # what is not used may be damaged
        return ""
    return f" ({'at least ' if len(files) == _COUNTED else ''}{rows:,} rows)"


def _rows(files: Sequence[Path]) -> int:
    """Raises JobError."""
    import pyarrow.parquet as pq

    count = 0
    for path in files:
        with reading(path):
            count += pq.read_metadata(path).num_rows
    return count
