"""Recognize a dataset on disk: format, files, columns and size, before any image is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdjob.dataset import image_formats, splits
from sdjob.dataset.formats import DatasetInfo, Format, Wanted
from sdjob.dataset.formats.folder import FOLDER
from sdjob.dataset.formats.metadata import METADATA
from sdjob.dataset.formats.parquet import PARQUET
from sdjob.dataset.formats.saved import SAVED
from sdjob.files import Listing, below, few, list_folder, open_listing, shown, unreadable
from sdjob.formatting import counted
from sdjob.problems import JobError, Problem, bad_input

if TYPE_CHECKING:
    from sdjob.settings.run_spec import RunSpec

FORMATS: tuple[Format, ...] = (SAVED, METADATA, PARQUET, FOLDER)  # a folder is of the first that detects it

MAX_DEPTH = 4


def find_dataset(
    root: Path,
    name: str | None,
    *,
    captions: bool,
    image_column: str,
    caption_column: str,
    wanted_splits: tuple[str, ...] = splits.TO_TRAIN,
) -> DatasetInfo:
    """The dataset under a mount. Raises JobError with everything that is wrong with it."""
    path = below(root, name, "dataset_name", lambda listing: _format_of(listing, captions) is not None)
    listing, detected, split = _locate(path, captions, wanted_splits)
    info = detected.inspect(
        listing, Wanted(image_column, caption_column if captions else None, wanted_splits)
    )
    return info if info.split else replace(info, split=split)


def has_unread_captions(info: DatasetInfo, caption_column: str) -> bool:
    """Whether a dataset that is read without captions has some."""
    listing = list_folder(info.path)
    captioned = _format_of(listing, captions=True)
    if info.caption_column or captioned is None or captioned.lacks_captions(listing):
        return False
    return caption_column in info.columns if info.row_counts else True


def dataset_in(
    folder: str | Path, spec: RunSpec, *, captions: bool, wanted_splits: tuple[str, ...] | None = None
) -> DatasetInfo:
    """The dataset of a run in this folder; its split as set, unless the caller wants others. Raises JobError (66)."""
    return find_dataset(
        Path(folder),
        None,
        captions=captions,
        image_column=spec.image_column,
        caption_column=spec.caption_column,
        wanted_splits=wanted_splits or splits.by_setting(spec.dataset_split),
    )


def _format_of(listing: Listing, captions: bool) -> Format | None:
    """The format of a folder by itself."""
    return next((each for each in FORMATS if each.detect(listing, captions)), None)


def _locate(path: Path, captions: bool, wanted_splits: tuple[str, ...]) -> tuple[Listing, Format, str]:
    """The one dataset at a path or below it, of the split that is wanted where folders are named after splits, which
    comes last."""
    top = open_listing(path)
    seen: list[Listing] = []
    problems: list[Problem] = []
    found = list(_search(top, captions, MAX_DEPTH, seen, problems, {os.path.realpath(path)}))
    if captions:
        found = [pair for pair in found if not pair[1].lacks_captions(pair[0])] or found[:1]
    by_name = {relative(path, listing.path) or "": (listing, detected) for listing, detected in found}
    if found:
        choice = splits.choose(tuple(by_name), wanted_splits)
        if choice is None:
            raise JobError(splits.refused(shown(path), list(by_name), wanted_splits))
        if len(choice.names) == 1:
            return *by_name[choice.names[0]], choice.split
        remedy = f"set dataset_name to one of them, for example dataset_name={shown(path / choice.names[0])}"
        raise JobError(
            bad_input(shown(path), f"holds {len(choice.names)} datasets: {few(choice.names)}", remedy)
        )
    contents = "; ".join(f"{shown(listing.path)}: {listing.summary()}" for listing in seen[:4])
    found_here = f"contains no images in a supported format, here or below; found {contents}"
    *others, last = (each.description for each in reversed(FORMATS))
    remedy = f"provide {', '.join(others)}, or {last}"
    unread = image_formats.unread(name for listing in seen for name in listing.files)
    problems += [
        bad_input(
            shown(path), f"{counted(len(names), 'image')} of a format that is not read: {few(names, 3)}", how
        )
        for how, names in unread.items()
    ]
    raise JobError([*problems, bad_input(shown(path), found_here, remedy)])


def relative(folder: Path, path: Path) -> str | None:
    """The second path relative to the first; "" for the same, None outside of it."""
    if path == folder:
        return ""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else None


def _search(
    listing: Listing,
    captions: bool,
    depth: int,
    seen: list[Listing],
    problems: list[Problem],
    visited: set[str],
) -> Iterator[tuple[Listing, Format]]:
    """The datasets at and below a folder, each folder once, however many links lead to it. The search ends at a
    dataset, except where captions are needed and it lacks them: its images may be a preview of the data below."""
    seen.append(listing)
    detected = _format_of(listing, captions)
    if detected:
        yield listing, detected
    if depth and (detected is None or (captions and detected.lacks_captions(listing))):
        for name in listing.folders:
            if (real := os.path.realpath(listing.path / name)) in visited:
                continue
            visited.add(real)
            try:
                inner = list_folder(listing.path / name)
            except OSError as error:
                problems.append(unreadable(listing.path / name, error))
                continue
            yield from _search(inner, captions, depth - 1, seen, problems, visited)
