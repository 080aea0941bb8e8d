"""The output folder: separate from the inputs, and writable as checkpoints need it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sdjob.files import unwritable_reason
from sdjob.problems import Problem, bad_output, bad_setting
from sdjob.writing import LinkError
from sdlaunch.preflight.job import Job
from sdlaunch.preflight.leftovers import owner_and_mode

_PROBES = 5
_FULL = (errno.ENOSPC, errno.EDQUOT)


def separate_from_inputs(job: Job) -> list[Problem]:
    """Refuse results and caches among the inputs: the next run would take them for a second model, or for images."""
    written = [("OUTPUT_DIR", job.mounts.output)]
    written += [("cache_dir", Path(job.spec.cache_dir).expanduser())] if job.spec.cache_dir else []
    inputs = (("MODEL_DIR", job.mounts.model), ("DATASET_DIR", job.mounts.dataset))
    return [
        bad_setting(
            setting,
            f"{path} is {variable} or is in it ({folder})",
            f"Set {setting} to a folder outside the model and the dataset, such as /output.",
        )
        for setting, path in written
        for variable, folder in inputs
        if Path(os.path.realpath(path)).is_relative_to(
            os.path.realpath(folder)
        )  # of a loop it raises nothing
    ]


def writable(job: Job) -> list[Problem]:
    """Prove by writing that the output folder can be made and written; nothing stays behind."""
    output = job.mounts.output
    for _ in range(_PROBES):
        try:
            refused = _probe(output)
            return [_without_operations(refused, output)] if refused else []
        except (FileNotFoundError, FileExistsError) as error:
            # Nodes that start together make and remove the same folder at the same time.
            problem = unwritable(output, error)
        except OSError as error:
            return [unwritable(output, error)]
    return [problem]


def _probe(output: Path) -> dict[str, str]:
    """Write into the folder, which is made if needed and then removed. Raises OSError."""
    made: list[Path] = []
    try:
        for folder in reversed((output, *output.parents)):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        return _write_probe(output)
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # meanwhile in use by another node
                folder.rmdir()


def failing(output: Path) -> Problem | None:
    """The problem of an output folder that could be written before."""
    try:
        _write_probe(output)
    except OSError as error:
        return unwritable(output, error)
    return None


def _write_probe(output: Path) -> dict[str, str]:
    """Write as a job does; returns what this file system cannot do, each with its error. Raises OSError."""
    refused = {}

    @contextlib.contextmanager
    def trying_to(what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise
            refused[what] = error.strerror or str(error)

    probe = output / f".probe-{os.urandom(8).hex()}"
    folder, path = probe / "folder", probe / "folder" / "file"
    try:
        folder.mkdir(parents=True)
        with path.open("xb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        with trying_to("append to a file"), path.open("ab") as log:  # as metrics and event files too
            log.write(b"more")
        with trying_to("rewrite a part of a file"), path.open("r+b") as heartbeat:
            heartbeat.write(b"else")
        with trying_to("replace a file"):  # as reports
            (folder / "new").write_bytes(b"new")
            (folder / "new").replace(path)
        with trying_to("rename a folder"):  # as checkpoints
            folder.rename(probe / "renamed")
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    return refused


def _without_operations(refused: dict[str, str], output: Path) -> Problem:
    """The problem of a file system that cannot do what a job needs."""
    missing = ", ".join(f"{what} ({why})" for what, why in refused.items())
    return bad_output(
        "OUTPUT_DIR",
        f"the file system of {output} cannot {missing}, as is common with mounts of object stores",
        "Mount a disk or a shared file system there (NFS, CephFS, Lustre, the cloud's file storage) and copy "
        "the results to the bucket when the job has ended, or set OUTPUT_DIR to such a folder.",
    )


def unwritable(output: Path, error: OSError) -> Problem:
    """The problem of an output folder that refused to be written."""
    found = f"{output} {unwritable_reason(error)}"
    if error.errno in (errno.EACCES, errno.EPERM):
        found += _owner(output)
    remedy = "Mount a writable volume there, or set OUTPUT_DIR to a writable folder."
    if error.errno in _FULL:
        remedy = "Free some space, mount a larger volume, or set OUTPUT_DIR to another folder."
    if isinstance(error, LinkError):
        remedy = "Remove the link, or set OUTPUT_DIR to another folder."
    return bad_output("OUTPUT_DIR", found, remedy)


def _owner(output: Path) -> str:
    """Whose the folder is, or the nearest one above that exists."""
    for folder in (output, *output.parents):
        with contextlib.suppress(OSError):
            return f" ({'it' if folder == output else folder} is {owner_and_mode(folder)})"
    return ""
