"""What is in the output folder already, where this job would write: all known paths, all problems at once.

Looked at without following links and without writing. A folder that another user or an earlier job has made fails a
job otherwise after hours, when its first sample or checkpoint is written.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from sdjob.files import few, shown
from sdjob.output.layout import OutputLayout
from sdjob.problems import Problem, bad_output
from sdlaunch.preflight.job import Job

_OTHER = "or set OUTPUT_DIR to another folder."


def findings(job: Job) -> list[Problem]:
    """A problem for each known path that is a link, of the wrong type, or not writable."""
    layout = OutputLayout(job.mounts.output)
    try:
        return list(_problems(layout, job.cluster.node_rank))
    except PermissionError:  # the check of writing reports a folder that this user may not enter
        return []


def _problems(layout: OutputLayout, node: int) -> Iterator[Problem]:
    yield from _misplaced(layout.folders(), "folder")
    yield from _misplaced((*layout.replaced_files(), *layout.opened_files(node)), "file")
    yield from map(_link, _links(layout, node))
    for folder in filter(_is_folder, layout.folders()):
        if os.access(folder, os.W_OK | os.X_OK):
            yield from _unusable(folder, filter(_is_folder, folder.iterdir()), os.W_OK | os.X_OK)
        else:
            yield _closed(folder)
    for file in filter(_is_file, layout.opened_files(node)):
        if not os.access(file, os.W_OK):
            yield _closed(file)
    yield from map(_closed, filter(_is_kept, filter(_is_file, layout.replaced_files())))


def _links(layout: OutputLayout, node: int) -> Iterator[Path]:
    """Other links where processes of a job leave logs and messages, by names that no list has."""
    known = {*layout.opened_files(node)}
    for folder in filter(_is_folder, (layout.run, layout.logs, layout.rank_log(node, 0).parent)):
        if os.access(folder, os.R_OK | os.X_OK):
            yield from (path for path in sorted({*folder.iterdir()} - known) if path.is_symlink())


def _misplaced(paths: Iterable[Path], wanted: str) -> Iterator[Problem]:
    """Links, and files in the place of folders, or folders in the place of files."""
    for path in paths:
        mode = _mode(path)
        if mode is None or (stat.S_ISDIR(mode) if wanted == "folder" else stat.S_ISREG(mode)):
            continue
        if stat.S_ISLNK(mode):
            yield _link(path)
            continue
        kind = "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device or a socket"
        found = f"{shown(path)} is a {kind}, not a {wanted}"
        remedy = f"Move it away, {_OTHER}"
        yield bad_output("OUTPUT_DIR", found, remedy)


def _link(path: Path) -> Problem:
    dead = "" if path.exists() else ", which does not exist"
    found = f"{shown(path)} is a link to {shown(path.readlink())}{dead}"
    remedy = f"Remove the link: results are written to OUTPUT_DIR itself; {_OTHER}"
    return bad_output("OUTPUT_DIR", found, remedy)


def _unusable(folder: Path, entries: Iterable[Path], access: int) -> Iterator[Problem]:
    """The entries of a folder that this user cannot change, as one problem."""
    closed = sorted(path for path in entries if not os.access(path, access))
    if closed:
        names = few(path.name for path in closed)
        found = f"{shown(folder)} holds {names}: {of_owner(closed[0])}, not writable by user {os.getuid()}"
        yield bad_output("OUTPUT_DIR", found, _remedy(folder))


def _closed(path: Path) -> Problem:
    found = f"{shown(path)}: {of_owner(path)}, not writable by user {os.getuid()}"
    return bad_output("OUTPUT_DIR", found, _remedy(path))


def _remedy(path: Path) -> str:
    return f"Remove it, or give it to this user: chown -R {os.getuid()} '{shown(path)}'; {_OTHER}"


def of_owner(path: Path) -> str:
    """Owner and mode of a path, in words."""
    info = path.lstat()
    if os.access(path, os.F_OK) and os.statvfs(path).f_flag & os.ST_RDONLY:
        return "on a read-only mount"
    try:
        name = f" ({pwd.getpwuid(info.st_uid).pw_name})"
    except KeyError:  # as in containers that run with the uid of a user of the host
        name = ""
    return f"of user {info.st_uid}{name}, mode {stat.filemode(info.st_mode)}"


def _is_kept(path: Path) -> bool:
    """Whether the sticky bit of its folder keeps this user from replacing a file."""
    folder, owners = path.parent.stat(), {path.lstat().st_uid, path.parent.stat().st_uid}
    return bool(folder.st_mode & stat.S_ISVTX) and os.geteuid() not in (0, *owners)


def _is_folder(path: Path) -> bool:
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _is_file(path: Path) -> bool:
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def _mode(path: Path) -> int | None:
    """Type and mode of the path itself, not of what a link leads to; None: nothing is there."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
