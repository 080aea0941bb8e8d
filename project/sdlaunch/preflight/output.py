"""The output folder: separate from the inputs, and writable as checkpoints need it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from sdjob.problems import Problem, bad_output, bad_setting
from sdlaunch.preflight.job import Job

_PROBES = 5


def apart(job: Job) -> list[Problem]:
    """Refuse results among the inputs: the next run would take them for a second model, or for images."""
    output = job.mounts.output.resolve()
    inputs = (("MODEL_DIR", job.mounts.model), ("DATASET_DIR", job.mounts.dataset))
    return [
        bad_setting(
            "OUTPUT_DIR",
            f"{job.mounts.output} is {variable} or is in it ({folder})",
            "Set OUTPUT_DIR to a folder outside the model and the dataset, such as /output.",
        )
        for variable, folder in inputs
        if output.is_relative_to(folder.resolve())
    ]


def writable(job: Job) -> list[Problem]:
    """Prove by writing that the output folder can be made and written; nothing stays behind."""
    for _ in range(_PROBES):
        try:
            _probe(job.mounts.output)
            return []
        except (FileNotFoundError, FileExistsError) as error:
            # Nodes that start together make and remove the same folder at the same time.
            problem = unwritable(job.mounts.output, error)
        except OSError as error:
            return [unwritable(job.mounts.output, error)]
    return [problem]


def _probe(output: Path) -> None:
    """Write into the folder, which is made if needed and then removed. Raises OSError."""
    made: list[Path] = []
    try:
        for folder in reversed((output, *output.parents)):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        _write_probe(output / f".probe-{os.urandom(8).hex()}")
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # meanwhile in use by another node
                folder.rmdir()


def _write_probe(probe: Path) -> None:
    """Write as a checkpoint does: a file in a folder, which is then renamed. Raises OSError."""
    renamed = probe.with_name(f"{probe.name}-renamed")
    try:
        probe.mkdir()
        with (probe / "file").open("xb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        try:
            probe.rename(renamed)
        except OSError as error:  # some mounts of object stores have no folders, and so cannot rename one
            found = f"a folder with files cannot be renamed there ({error.strerror})"
            raise OSError(errno.ENOTSUP, found) from error
    finally:
        for folder in (probe, renamed):
            shutil.rmtree(folder, ignore_errors=True)


def unwritable(output: Path, error: OSError) -> Problem:
    """The problem of an output folder that refused to be written."""
    remedy = "Mount a writable volume there, or set OUTPUT_DIR to a writable folder."
    match error.errno:
        case errno.ENOTDIR | errno.EEXIST:
            found = f"{output} is a file, not a folder, or is below one"
        case errno.EACCES | errno.EPERM:
            found = f"{output} cannot be written by user {os.getuid()}"
        case errno.EROFS:
            found = f"{output} is mounted read-only"
        case errno.ENOSPC | errno.EDQUOT:
            found = f"no space left in {output}"
            remedy = "Free some space, mount a larger volume, or set OUTPUT_DIR to another folder."
        case _:
            found = f"{output}: {error.strerror}"
    return bad_output("OUTPUT_DIR", found, remedy)
