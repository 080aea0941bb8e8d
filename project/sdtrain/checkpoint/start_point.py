"""Where a run starts: at step 0 or at a checkpoint; and what happens to an earlier run's files."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from sdjob.output import fingerprint, newest_checkpoint
from sdjob.output.layout import OutputLayout, StepFolder, step_folders
from sdjob.problems import JobError, bad_output
from sdjob.writing import LinkError
from sdtrain.checkpoint.checkpoint import TrainState, read_state
from sdtrain.context import RunContext
from sdtrain.reporting.progress import say
from sdtrain.runtime import exit_note, heartbeat
from sdtrain.runtime.errors import of_link


@dataclass(frozen=True)
class ResumePoint:
    """A verified checkpoint that the run continues."""

    folder: Path
    state: TrainState
    is_branch: bool  # `resume` names it, and the run goes back to it for the first time


@heartbeat.working("check the checkpoint")
def find(context: RunContext, facts: dict[str, str], largest: float = math.inf) -> ResumePoint | None:
    """The checkpoint that this run continues, if any; raises JobError (64) if another run wrote it.

    `largest`: bytes that it may have. On one rank for all: so each byte is verified once, and the ranks cannot
    disagree.
    """
    setting = context.spec.resume
    origin = newest_checkpoint.origin_of(context.layout, setting)
    # A restart after a crash of this very run must not start from the beginning a second time.
    restarted = setting == "never" and exit_note.has_started()
    folder = newest(context.layout, "auto" if restarted else setting, largest)
    if folder is None:
        return None
    state = read_state(folder.path)
    if problems := fingerprint.differences(state.fingerprint, facts, folder.path):
        raise JobError(problems)
    is_branch = bool(origin) and state.origin != origin
    if not is_branch and state.spent.at is not None:
        state = replace(state, spent=state.spent.and_unsaved(context.layout))
    return ResumePoint(folder.path, replace(state, origin=origin or state.origin), is_branch)


def newest(layout: OutputLayout, setting: str, largest: float = math.inf) -> StepFolder | None:
    """The checkpoint that `resume` means, verified byte by byte; None: start afresh. Raises JobError (64).

    Newer ones that are not whole are reported with the reason, and left alone.
    """

    def skipped(folder: StepFolder, defect: str) -> None:
        say(f"checkpoint {folder.path.name} is incomplete or damaged and is skipped: {defect}")

    return newest_checkpoint.newest(layout, setting, skipped, hashes=True, largest=largest)


def take_over(layout: OutputLayout, start: ResumePoint | None) -> None:
    """Move an earlier run's files aside and mark the output folder as this run's. On one rank. Raises JobError (73)."""
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        layout.refuse_links()  # before anything is moved away
        aside = move_aside(layout, start) if start is None or start.is_branch else None
        layout.make(layout.checkpoint)
        exit_note.mark_started()
    except LinkError as error:
        raise JobError(of_link(error)) from error
    except OSError as error:
        remedy = "Name a folder that can be written, or that can be created."
        raise JobError(bad_output("OUTPUT_DIR", f"cannot be written ({error})", remedy)) from error
    if aside:
        say(f"the files of an earlier run in {layout.root} are kept in {aside}")
    say(f"resuming from {start.folder}" if start else "starting from the beginning")


def move_aside(layout: OutputLayout, start: ResumePoint | None) -> Path | None:
    """Move the files of an earlier run to earlier-N/, and return that folder; None: there were none.

    Without a start, everything that training writes, also of a run that died before its first checkpoint;
    with one, the result and the later checkpoints.
    """
    if start is None:
        folders = layout.checkpoint, layout.tensorboard, layout.samples
        # Without a report, the page is that of the launcher of this run.
        pages = (layout.page, layout.page_data) if layout.report.exists() else ()
        files = layout.metrics, layout.events, layout.report, *pages
        items = [*filter(_visible, folders), *filter(Path.exists, files)]
    else:
        kept = {folder.path for folder in step_folders(layout) if folder.step <= start.state.step}
        items = [path for path in _visible(layout.checkpoint) if path not in kept]
    if not items:
        return None
    number = 1
    while os.path.lexists(aside := layout.root / f"earlier-{number}"):
        number += 1
    for path in items:
        target = aside / path.relative_to(layout.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return aside


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder, without those of an interrupted save."""
    return [path for path in folder.glob("*") if not path.name.startswith(".")]
