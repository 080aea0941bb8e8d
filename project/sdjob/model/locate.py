"""The path of the model under a mount: a pipeline folder, or one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdjob.files import Listing, below, few, list_folder, open_listing, shown, unreadable
from sdjob.model import hub_cache, single_file
from sdjob.model.architectures import component_names
from sdjob.problems import JobError, Problem, bad_input

_MAX_FILES = 50  # single files of a folder that are opened
_MAX_REFUSALS = 6  # of these, shown in messages


def model_path(root: Path, name: str | None, *, allow_pickle: bool) -> Path:
    """The one pipeline folder under a mount or one level below it; where there is none, the one single file.

    Raises JobError.
    """
    start = _in_hub_cache(root, name) or below(
        root, name, "model_name", _looks_like_pipeline, single_file.SUFFIXES
    )
    if start.is_file():
        return start
    top = open_listing(start)
    if hub_cache.is_repository(top):
        start = hub_cache.snapshot_of(start)
        top = open_listing(start)
    if _looks_like_pipeline(top):
        return start
    inner: list[Listing] = []
    closed: list[Problem] = []
    for name in top.folders:
        try:
            inner.append(list_folder(start / name))
        except OSError as error:
            closed.append(unreadable(start / name, error))
    found = {listing.path: listing.path for listing in inner if _looks_like_pipeline(listing)}
    snapshots = {path: hub_cache.snapshot_of(path) for path in hub_cache.repositories(top)}
    found |= {
        path: inside for path, inside in snapshots.items() if _looks_like_pipeline(open_listing(inside))
    }
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise JobError(_ambiguous(start, [*found], "pipelines"))
    for listings in ((top,), inner):
        if files := [each.path / name for each in listings for name in _single_files(each)]:
            return _one_of(start, files, allow_pickle=allow_pickle)
    found_here = (
        f"no model (a folder with model_index.json, or one .safetensors file) here or one level below; "
        f"found {top.summary()}"
    )
    remedy = "mount the folder of a pipeline, or set model_name to a folder or file below the mount"
    raise JobError([*closed, bad_input(shown(start), found_here, remedy)])


def _in_hub_cache(root: Path, name: str | None) -> Path | None:
    """The repository that a name of the hub means in a mounted cache; None: the name is that of a folder or file."""
    try:
        return None if name and (root / name).exists() else hub_cache.repository_of(root, name)
    except (OSError, ValueError):  # reported where the name is looked for
        return None


def _single_files(listing: Listing) -> list[str]:
    """What may be models; pickles only where there is nothing better."""
    safe = [name for name in listing.files if name.endswith(".safetensors")]
    return safe or [name for name in listing.files if name.endswith(single_file.SUFFIXES)]


def _one_of(folder: Path, files: Sequence[Path], *, allow_pickle: bool) -> Path:
    """The one model among single files; VAEs, LoRAs and the like are often in the same folder. Raises JobError."""
    if len(files) == 1:
        return files[0]
    models: list[Path] = []
    others: list[Problem] = []
    broken: list[Problem] = []
    for path in files[:_MAX_FILES]:
        try:
            refusal = single_file.refusal(path, allow_pickle=allow_pickle)
            others += [refusal] if refusal else []
            models += [] if refusal else [path]
        except JobError as error:
            broken += error.problems
    if len(models) == 1 and not broken:
        return models[0]
    if models:
        raise JobError([_ambiguous(folder, models, "models"), *broken])
    raise JobError((broken + others)[:_MAX_REFUSALS])


def _ambiguous(folder: Path, found: Sequence[Path], what: str) -> Problem:
    names = [path.relative_to(folder).as_posix() for path in found]
    return bad_input(
        shown(folder),
        f"holds {len(found)} {what}: {few(names)}",
        f"set model_name to one of them, for example model_name={shown(names[0])}",
    )


def _looks_like_pipeline(listing: Listing) -> bool:
    """Also without model_index.json, so that the message can say that it is missing."""
    return "model_index.json" in listing.files or len(component_names() & set(listing.folders)) >= 2
