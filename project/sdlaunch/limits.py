"""Errors by which the system says that a limit is reached: of memory, processes, threads, or the size of a command."""

from __future__ import annotations

import errno

from sdjob import failure_patterns
from sdjob.problems import Problem, bad_setting, no_hardware


def problem_of(error: Exception) -> Problem | None:
    """The problem behind an exception; None: it is a bug."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.E2BIG:
        remedy = "Shorten the longest values (prompts, script_args), or unset variables that the job does not need."
        return bad_setting("command line", "settings and variables are larger than this system takes", remedy)
    if number in (errno.EMFILE, errno.ENFILE):
        return no_hardware("open files", "no more files can be opened", "Raise the limit: ulimit -n 65536.")
    text = f"{type(error).__name__}: {error}"
    if number in (errno.EAGAIN, errno.ENOMEM):
        text = "can't start new thread" if number == errno.EAGAIN else "MemoryError"
    known = failure_patterns.find(text) if number or isinstance(error, (RuntimeError, MemoryError)) else None
    return Problem(int(known.code), known.subject, known.cause, known.remedy) if known else None
