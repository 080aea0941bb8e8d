"""What is in the output folder already, where this job would write: all known paths, all problems at once.

Looked at without following links and without writing. A folder that another user or an earlier job has made fails a
job otherwise after hours, when its first sample or checkpoint is written.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
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
    for folder in layout.folders():
        mode = _mode(folder)
        if stat.S_ISDIR(mode):
            yield from _closed_in(folder)
        elif mode:
            yield _misplaced(folder, mode, "folder")
    opened = layout.opened_files(node)
    for file in (*layout.replaced_files(), *opened):
        mode = _mode(file)
        if stat.S_ISREG(mode):
            if not os.access(file, os.W_OK) if file in opened else _is_sticky(file):
                yield _closed(file)
        elif mode:
            yield _misplaced(file, mode, "file")
    yield from map(_link, _links(layout, node))


def _links(layout: OutputLayout, node: int) -> Iterator[Path]:
    """Other links where processes of a job leave logs and messages, by names that no list has."""
    known = {*layout.opened_files(node)}
    for folder in (layout.run, layout.logs, layout.rank_log(node, 0).parent):
        if stat.S_ISDIR(_mode(folder)) and os.access(folder, os.R_OK | os.X_OK):
            yield from (path for path in sorted({*folder.iterdir()} - known) if path.is_symlink())


def _misplaced(path: Path, mode: int, wanted: str) -> Problem:
    """A link, a file in the place of a folder, or a folder in the place of a file."""
    if stat.S_ISLNK(mode):
        return _link(path)
    kind = "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device or a socket"
    found = f"{shown(path)} is a {kind}, not a {wanted}"
    return bad_output("OUTPUT_DIR", found, f"Move it away, {_OTHER}")


def _link(path: Path) -> Problem:
    dead = "" if path.exists() else ", which does not exist"
    found = f"{shown(path)} is a link to {shown(path.readlink())}{dead}"
    remedy = f"Remove the link: results are written to OUTPUT_DIR itself; {_OTHER}"
    return bad_output("OUTPUT_DIR", found, remedy)


def _closed_in(folder: Path) -> Iterator[Problem]:
    """The folder, or the folders in it, that this user cannot change, as one problem."""
    access = os.W_OK | os.X_OK
    if not os.access(folder, access):
        yield _closed(folder)
        return
    closed = sorted(
        each for each in folder.iterdir() if stat.S_ISDIR(_mode(each)) and not os.access(each, access)
    )
    if closed:
        found = f"{shown(folder)} holds {few(path.name for path in closed)}: {not_writable(closed[0])}"
        yield bad_output("OUTPUT_DIR", found, _remedy(folder))


def _closed(path: Path) -> Problem:
    return bad_output("OUTPUT_DIR", f"{shown(path)}: {not_writable(path)}", _remedy(path))


def _remedy(path: Path) -> str:
    return f"Remove it, or give it to this user: chown -R {os.getuid()} '{shown(path)}'; {_OTHER}"


def not_writable(path: Path) -> str:
    """Why this user cannot write, with owner and mode of the path."""
    return f"{owner_and_mode(path)}, not writable by user {os.getuid()}"


def owner_and_mode(path: Path) -> str:
    info = path.lstat()
    if os.access(path, os.F_OK) and os.statvfs(path).f_flag & os.ST_RDONLY:
        return "on a read-only mount"
    try:
        name = f" ({pwd.getpwuid(info.st_uid).pw_name})"
    except KeyError:  # as in containers that run with the uid of a user of the host
        name = ""
    return f"of user {info.st_uid}{name}, mode {stat.filemode(info.st_mode)}"


def _is_sticky(path: Path) -> bool:
    """Whether the sticky bit of its folder keeps this user from replacing a file."""
    folder, owners = path.parent.stat(), {path.lstat().st_uid, path.parent.stat().st_uid}
    return bool(folder.st_mode & stat.S_ISVTX) and os.geteuid() not in (0, *owners)


def _mode(path: Path) -> int:
    """Type and mode of the path itself, not of what a link leads to; 0: nothing is there."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
