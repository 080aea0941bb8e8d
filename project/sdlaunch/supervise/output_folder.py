"""The output folder after a job: whether it is still there, and can be written."""

from __future__ import annotations

import time
from pathlib import Path

from sdjob.problems import Problem, bad_output
from sdlaunch.preflight.output import failing
from sdlaunch.supervise.lock import Lock
from sdlaunch.timeouts import NoAnswer, Task

_PATIENCE = 5.0  # seconds for a mount that may not answer


def problem_after(lock: Lock, output: Path, *, failed: bool) -> Problem | None:
    """The problem of a folder that is gone, or after a failure of one that cannot be written any more."""
    try:
        return Task(lambda: _problem(lock, output, failed)).result(time.monotonic() + _PATIENCE)
    except NoAnswer:
        remedy = "Check the mount and the storage behind it."
        return bad_output("OUTPUT_DIR", f"{output} does not answer within {_PATIENCE:g} s", remedy)


def _problem(lock: Lock, output: Path, failed: bool) -> Problem | None:
    if lock.is_gone():
        lock.lost.set()
    if not lock.lost.is_set():
        return failing(output) if failed else None
    found = f"{output} was removed, unmounted or replaced while the job ran"
    return bad_output(
        "OUTPUT_DIR", found, "Find out by what; then start again, from the checkpoints that are left."
    )
