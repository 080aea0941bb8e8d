"""Names of the Hugging Face hub, and its cache as a mount: models--ORG--NAME/snapshots/REVISION, links into blobs/."""

from __future__ import annotations

import re
from pathlib import Path

from sdjob import reading
from sdjob.files import Listing, few, list_folder, open_listing, shown
from sdjob.problems import JobError, bad_input

_PREFIX = "models--"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LONGEST_NAME = 1 << 12  # bytes of a file that names a revision


def is_hub_name(name: str | None) -> bool:
    """Whether this can be a name of the hub: owner/name."""
    return name is not None and _NAME.fullmatch(name) is not None


def is_repository(listing: Listing) -> bool:
    return "snapshots" in listing.folders and ("refs" in listing.folders or "blobs" in listing.folders)


def repositories(listing: Listing) -> list[Path]:
    """The repositories of models in a cache folder, or in its subfolder `hub`. Raises JobError."""
    if "hub" in listing.folders and not any(name.startswith(_PREFIX) for name in listing.folders):
        listing = open_listing(listing.path / "hub")
    return [listing.path / name for name in listing.folders if name.startswith(_PREFIX)]


def repository_of(root: Path, name: str | None) -> Path | None:
    """The repository of ORG/NAME below a mounted cache; None: it has none. Raises OSError."""
    folder = f"{_PREFIX}{(name or '').replace('/', '--')}"
    paths = (root / folder, root / "hub" / folder) if name and not Path(name).is_absolute() else ()
    return next((path for path in paths if path.is_dir()), None)


def snapshot_of(repository: Path) -> Path:
    """The snapshot of refs/main; without that the only one. Raises JobError (66)."""
    snapshots = repository / "snapshots"
    try:
        revisions = list_folder(snapshots).folders
        main = repository / "refs/main"
        chosen = reading.content(main, _LONGEST_NAME).decode().strip() if main.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        found = f"is a repository of a hub cache that cannot be read ({error})"
        raise JobError(bad_input(shown(repository), found, "mount the whole cache folder")) from error
    if chosen in revisions or len(revisions) == 1:
        return snapshots / (chosen if chosen in revisions else revisions[0])
    if not revisions:
        found = "is a repository of a hub cache without a snapshot"
        raise JobError(bad_input(shown(repository), found, "download the model again"))
    found = f"holds {len(revisions)} snapshots: {few(revisions)}; refs/main names none of them"
    raise JobError(bad_input(shown(snapshots), found, "set model_name to the path of one of them"))
