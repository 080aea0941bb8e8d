"""The last line of a run: where its result is, or what is kept of it, and what to look at."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sdjob.exit_codes import ExitCode
from sdjob.formatting import visible
from sdjob.output.layout import OutputLayout, step_folders
from sdjob.problems import Problem
from sdlaunch.timeouts import NoAnswer, Task

_PATIENCE = 5.0  # seconds for an output folder that may not answer


def of_ended(layout: OutputLayout, code: int, result: Path) -> str:
    """Of a job that was started. `code`: of the training; `result`: where that of a finished one is."""
    if code == ExitCode.FINISHED:
        return _line("result", layout, lambda: f"{result}{_page(layout)}")
    if code == ExitCode.STOPPED or code > 128:  # by a signal
        return _line("stopped", layout, lambda: f"{_goes_on(layout)}{_page(layout)}")
    return _line("failed", layout, lambda: f"{_kept(layout)}{_page(layout)}")


def of_refused(layout: OutputLayout, problems: Sequence[Problem]) -> str:
    """Of a job that was not started, because of these problems."""

    def text() -> str:
        # Where another job is at work, or nothing can be written, the page is not about these problems.
        is_reported = layout.failure.is_file() and all(
            problem.subject != "OUTPUT_DIR" for problem in problems
        )
        return f"{_kept(layout)}{_page(layout) if is_reported else '; see it again: bash train.sh check'}"

    return _line("not started", layout, text)


def _line(title: str, layout: OutputLayout, text: Callable[[], str]) -> str:
    try:
        said = Task(text).result(time.monotonic() + _PATIENCE)
    except (NoAnswer, OSError):
        said = f"{layout.root} cannot be read"
    return visible(f"{title}: {said}")


def _goes_on(layout: OutputLayout) -> str:
    verb = "continues" if _newest(layout) else "starts"
    return f"{_kept(layout)}; the same command {verb} the job"


def _kept(layout: OutputLayout) -> str:
    newest = _newest(layout)
    return f"{newest} is kept" if newest else f"no checkpoint is in {layout.checkpoint}"


def _newest(layout: OutputLayout) -> Path | None:
    return next((folder.path for folder in step_folders(layout) if folder.defect is None), None)


def _page(layout: OutputLayout) -> str:
    return f"; open {layout.page}" if layout.page.is_file() else ""
