"""Files and folders that users provide: listed, read, and what is wrong with them in words."""

from __future__ import annotations

import errno
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sdjob import reading
from sdjob.problems import JobError, Problem, bad_input
from sdjob.writing import LinkError

LFS_POINTER = b"version https://git-lfs"
_AGAIN = "copy or download it again, with all its files"
_STRAY = frozenset({"Thumbs.db", "thumbs.db", "Desktop.ini", "desktop.ini", "__MACOSX", "lost+found"})


@dataclass(frozen=True)
class Listing:
    """Names in a folder, sorted, without hidden and stray entries (.DS_Store, ._x, Thumbs.db, …)."""

    path: Path
    files: tuple[str, ...]
    folders: tuple[str, ...]

    def summary(self) -> str:
        """The content in a few words."""
        counts = Counter(suffix_of(name) or "(no extension)" for name in self.files)
        parts = [f"{count:,} {shown(suffix)}" for suffix, count in counts.most_common(5)]
        if len(counts) > 5:
            parts.append(f"{len(counts) - 5} other types")
        if self.folders:
            parts.append(f"folders {few(self.folders)}")
        return ", ".join(parts) or "nothing"


def list_folder(path: Path) -> Listing:
    """List a folder in one pass, without a stat per file. Raises OSError."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if _is_visible(name):
                try:
                    (folders if entry.is_dir() else files).append(name)
                except OSError:  # a link to a path that cannot be reached
                    files.append(name)
    return Listing(path, tuple(sorted(files)), tuple(sorted(folders)))


def is_empty(path: Path) -> bool:
    """Whether a folder holds nothing but hidden and stray entries. Raises OSError."""
    with os.scandir(path) as entries:
        return not any(_is_visible(entry.name) for entry in entries)


def _is_visible(name: str) -> bool:
    return name[0] != "." and name not in _STRAY


def suffix_of(name: str) -> str:
    """ ".jpg" of "a.JPG"; strings, because a Path for each of a million names takes seconds."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def open_listing(path: Path) -> Listing:
    """List a folder that must exist and not be empty. Raises JobError."""
    try:
        if not is_empty(path):
            return list_folder(path)
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    raise JobError(bad_input(shown(path), "is empty", "copy the files into this folder, or name another one"))


def below(
    root: Path,
    name: str | None,
    setting: str,
    is_one: Callable[[Listing], bool],
    suffixes: tuple[str, ...] = (),
) -> Path:
    """The path that a user means: the mount itself, a folder below it, or an absolute path. Raises JobError.

    `is_one`: whether a folder is such an input itself; `suffixes`: of files that can be meant too.
    """
    path = root / name if name else root  # an absolute name replaces the root
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not name:
            raise JobError(unreadable(path, error)) from error
        listing = open_listing(root)
        files = [name for name in listing.files if suffixes and name.endswith(suffixes)]
        there = [*listing.folders, *files]
        found = f"does not exist; {shown(root)} holds {few(there) or 'no folders'}"
        remedy = f"set {setting} to a folder {'or file ' if files else ''}below {shown(root)}, or to an absolute path"
        if meant := get_close_matches(name, there, n=1):
            remedy = f"did you mean {shown(meant[0])}? {remedy[0].upper()}{remedy[1:]}"
        elif is_one(listing):
            remedy = f"leave {setting} empty: the files are in {shown(root)} itself"
        raise JobError(bad_input(shown(path), found, remedy)) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise JobError(unreadable(path, error)) from error
    return path


def shown(path: Path | str) -> str:
    """A path as text that can be printed, even if its name is not UTF-8; in quotes where not all of it is visible."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # lone surrogates that stand for no byte
        text = str(path).encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else repr(text)


def unreadable(path: Path, error: OSError | ValueError) -> Problem:
    """The problem of a file or folder that cannot be read."""
    if isinstance(error, PermissionError):
        remedy = f"make it readable for this user: chmod -R a+rX '{shown(path)}'"
    elif isinstance(error, FileNotFoundError) and path.is_symlink():
        return dead_link(path)
    elif isinstance(error, (FileNotFoundError, NotADirectoryError)):
        remedy = "correct the path or the mount"
    else:
        remedy = "check the mount and the storage behind it"
    return bad_input(shown(path), reason_of(error), remedy)


def dead_link(path: Path) -> Problem:
    """The problem of a link whose target is not there, as in a snapshot of a hub cache that was mounted alone."""
    found = f"is a link to {shown(path.readlink())}, which does not exist here"
    return bad_input(
        shown(path), found, "mount the whole folder with what it links to, or copy it with cp -rL"
    )


def missing(path: Path, remedy: str) -> Problem:
    """The problem of a file or folder that must be there."""
    return dead_link(path) if path.is_symlink() else bad_input(shown(path), "is missing", remedy)


def reason_of(error: OSError | ValueError) -> str:
    """The reason, as part of a sentence."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, NotADirectoryError):
        return "is a file, not a folder"
    if isinstance(error, PermissionError):
        return f"cannot be read by user {os.getuid()} (permission denied)"
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def unwritable_reason(error: OSError) -> str:
    """The reason why a file or folder cannot be written, as the predicate of a sentence."""
    if isinstance(error, LinkError):
        return f"is {error.strerror}"
    match error.errno:
        case errno.ENOENT:
            return "does not exist"
        case errno.ENOTDIR | errno.EEXIST:
            return "is a file, not a folder, or is below one"
        case errno.EISDIR | errno.ENOTEMPTY:
            return "is a folder, where a file is to be written"
        case errno.EACCES | errno.EPERM:
            return f"cannot be written by user {os.getuid()}"
        case errno.EROFS:
            return "is mounted read-only"
        case errno.ENOSPC | errno.EDQUOT:
            return "has no space left"
        case _:
            return f"cannot be written ({error.strerror or error})"


def check_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer file. Raises JobError, OSError."""
    _check_pointer(path, _first(path, len(LFS_POINTER)))


def _check_pointer(path: Path, content: bytes) -> None:
    if content.startswith(LFS_POINTER):
        found = "is a Git LFS pointer, not the file itself"
        remedy = "run `git lfs pull` in the folder that was cloned, or download the file again"
        raise JobError(bad_input(shown(path), found, remedy))


def _first(path: Path, count: int) -> bytes:
    """The first bytes of a regular file. Raises OSError."""
    with reading.opened(path) as file:
        return file.read(count)


def read_file(path: Path, count: int = -1) -> bytes:
    """The first bytes of a file, or all, which must exist and not be empty. Raises JobError."""
    try:
        content = _first(path, max(count, len(LFS_POINTER))) if count >= 0 else reading.content(path)
        _check_pointer(path, content)
    except FileNotFoundError as error:
        raise JobError(missing(path, _AGAIN)) from error
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    if not content:
        raise JobError(bad_input(shown(path), "is empty (0 bytes)", _AGAIN))
    return content if count < 0 else content[:count]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, all of whose numbers are finite. Raises JobError."""

    def refuse(number: str) -> None:  # in a model's config it would be in each of its results
        raise ValueError(f"{number[:20]} is not a finite number")

    try:
        value = reading.json_of(read_file(path), refuse)
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise JobError(bad_input(shown(path), f"is not readable JSON ({error})", _AGAIN)) from error
    return value


def few(items: Iterable[str], limit: int = 6) -> str:
    """The first items, and the number of the others."""
    texts = [shown(item) for item in items]
    more = f" and {len(texts) - limit:,} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def user_cache(environ: Mapping[str, str]) -> Path:
    """This project's folder in the user's cache, or a temporary one where that cannot be written. Makes nothing."""
    base = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "/nonexistent", ".cache"))
    existing = next(path for path in (base, *base.parents) if path.exists())
    if existing.is_dir() and os.access(existing, os.W_OK):
        return base / "sd-finetune"
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:  # none that can be written
        temporary = "/tmp"
    return Path(temporary) / f"sd-finetune-{os.getuid()}"
