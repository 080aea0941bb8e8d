"""Exceptions that the user can fix: too little memory, a device at fault, no space left, a missing package."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from pathlib import Path

from sdjob import failure_patterns, files
from sdjob.exit_codes import ExitCode
from sdjob.problems import JobError, Problem, bad_output, exit_code, no_hardware
from sdjob.writing import LinkError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_REFUSED = (errno.EIO, errno.EACCES, errno.EPERM)
_GONE = (errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EREMOTEIO)  # a network mount
# A path that others have changed; EINVAL and ENXIO: a pipe is in its place.
_CHANGED = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY),
    *(errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENXIO),
)
# safetensors and torch put the system's error into the text of their own.
_WRAPPED_NUMBER = re.compile(r"\(os error (\d+)\)")
_WRAPPED_WORDS = ("no space left", "disk quota", "file write failed", "unexpected pos")


def problem_of(error: Exception, output: Path | None = None) -> Problem | None:
    """The problem behind an exception; None: it is a bug. `output`: the folder whose failures are problems too."""
    if isinstance(error, LinkError):
        return of_link(error)
    text = "".join(traceback.format_exception_only(error))  # its type is a part of what it says
    known = failure_patterns.find(text) if isinstance(error, (RuntimeError, MemoryError, OSError)) else None
    # A lost connection may follow from the end of another rank, and be restarted: no problem of this one.
    if known and known.code not in (ExitCode.TRAINING_FAILED, ExitCode.OUTPUT_FULL):
        found = f"{known.cause} ({known.line(text)})"
        return Problem(int(known.code), known.subject, found, known.remedy)
    from_files = isinstance(error, OSError) or type(error).__name__ == "SafetensorError"
    if from_files and (_errno(error) in _FULL or _has_wrapped_words(error)):
        return no_space(f"cannot be written ({error})")
    if output and (changed := _changed_path(error, output)):
        return changed
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("sd"):
        package = error.name.split(".")[0]
        return no_hardware(
            "Python", f"the package {package} is not installed", f"Install it: pip install {package}"
        )
    if broken := _broken_package(error):
        found = f"{broken} is installed, but cannot be imported ({type(error).__name__}: {_root(error)})"
        remedy = f"Install it again: {sys.executable} -m pip install --force-reinstall {broken}"
        return no_hardware("Python packages", found, remedy)
    return None


def problems_of(error: Exception) -> tuple[Problem, ...]:
    """The problems behind an exception; none: it is a bug."""
    if isinstance(error, JobError):
        return error.problems
    problem = problem_of(error)
    return (problem,) if problem else ()


def _changed_path(error: Exception, output: Path) -> Problem | None:
    """The problem of a path below the output folder that is not as the job left it; None: the error is another one."""
    if not isinstance(error, OSError) or error.errno not in _CHANGED:
        return None
    for name in (error.filename2, error.filename):  # of a rename, the target first
        path = Path(os.fsdecode(name)) if isinstance(name, (str, bytes, os.PathLike)) else None
        if path and path.absolute().is_relative_to(output.absolute()):
            remedy = (
                "It was changed while the job ran: keep others from writing there, and start again; "
                "the run resumes from its last checkpoint."
            )
            return bad_output("OUTPUT_DIR", f"{files.shown(path)} {files.unwritable_reason(error)}", remedy)
    return None


def reported(error: Exception) -> int:
    """Say on standard error why a command failed, and return its exit code; only a bug has a traceback."""
    problems = problems_of(error)
    print("\n".join(map(str, problems)) or "".join(traceback.format_exception(error)), file=sys.stderr)
    return exit_code(problems) or int(ExitCode.TRAINING_FAILED)


def _root(error: BaseException) -> BaseException:
    """The first of the exceptions that led to this one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _broken_package(error: BaseException) -> str | None:
    """The installed package whose own code failed while it was imported; None: the error is another one."""
    frames = traceback.extract_tb(_root(error).__traceback__)
    parts = [Path(frame.filename).parts for frame in frames if frame.name == "<module>"]
    sites = [each for each in parts if {"site-packages", "dist-packages"} & {*each}]
    if not sites:
        return None
    innermost = sites[-1]
    position = max(index for index, part in enumerate(innermost) if part.endswith("-packages"))
    return Path(innermost[position + 1]).stem


def no_space(found: str) -> Problem:
    """The problem of an output folder that cannot be written during a run."""
    remedy = (
        "Free some space or lower checkpoints_total_limit; the next start resumes from the last checkpoint."
    )
    return bad_output("OUTPUT_DIR", found, remedy)


def of_link(error: LinkError) -> Problem:
    remedy = "Remove the link: results are written to OUTPUT_DIR itself; or set OUTPUT_DIR to another folder."
    return bad_output("OUTPUT_DIR", f"{error.filename} is {error.strerror}", remedy)


def is_write_failure(error: Exception) -> bool:
    """Whether an exception raised while writing comes from the file system, or from a link that is there."""
    return (
        isinstance(error, LinkError)
        or _errno(error) in (*_FULL, *_REFUSED, *_GONE)
        or _has_wrapped_words(error)
    )


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    match = _WRAPPED_NUMBER.search(str(error))
    return int(match[1]) if match else None


def _has_wrapped_words(error: Exception) -> bool:
    text = str(error).lower()
    return not isinstance(error, OSError) and any(words in text for words in _WRAPPED_WORDS)
