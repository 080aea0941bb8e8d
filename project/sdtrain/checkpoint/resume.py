"""Where a run starts: at step 0 or at a checkpoint; and what becomes of an earlier run's files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sdjob.output import fingerprint, resume
from sdjob.output.layout import OutputLayout, StepFolder, step_folders
from sdjob.problems import JobError, Problem, bad_output
from sdjob.settings.run_spec import RunSpec
from sdtrain.checkpoint.checkpoint import TrainState, read_state
from sdtrain.reporting.progress import say
from sdtrain.runtime import exit_note
from sdtrain.runtime.distributed import World


@dataclass(frozen=True)
class ResumePoint:
    """A verified checkpoint that the run continues."""

    folder: Path
    state: TrainState
    is_branch: bool  # `resume` names it, and the run goes back to it for the first time


def find(spec: RunSpec, world: World, layout: OutputLayout, facts: dict[str, str]) -> ResumePoint | None:
    """The checkpoint that this run continues, if any. Collective. Raises JobError (64) if another run wrote it.

    Rank 0 looks for all ranks: so each byte is verified once, and the ranks cannot disagree.
    """
    # A restart after a crash of this very run must not start from the beginning a second time.
    restarted = spec.resume == "never" and world.gather(exit_note.has_started())[0]
    point: ResumePoint | None = None
    problems: tuple[Problem, ...] = ()
    if world.is_main:
        try:
            point = _point(newest(layout, "auto" if restarted else spec.resume), spec.resume)
            if point:
                problems = tuple(fingerprint.differences(point.state.fingerprint, facts, point.folder))
        except JobError as error:
            problems = error.problems
    world.agree(list(problems))
    of_main: ResumePoint | None = world.gather(point)[0]
    return of_main


def _point(start: StepFolder | None, setting: str) -> ResumePoint | None:
    if start is None:
        return None
    state, origin = read_state(start.path), resume.origin_of(setting)
    is_branch = bool(origin) and state.origin != origin
    return ResumePoint(start.path, replace(state, origin=origin or state.origin), is_branch)


def newest(layout: OutputLayout, setting: str) -> StepFolder | None:
    """The checkpoint that `resume` means, verified byte by byte; None: start afresh. Raises JobError (64).

    Newer incomplete ones are reported with the reason, and left alone.
    """

    def skipped(folder: StepFolder, defect: str) -> None:
        say(f"checkpoint {folder.path.name} is incomplete and is skipped: {defect}")

    return resume.newest(layout, setting, skipped, hashes=True)


def is_finished(spec: RunSpec, world: World, layout: OutputLayout, start: ResumePoint) -> bool:
    """Whether nothing is left to do, as rank 0 sees it: on other nodes a shared folder may lag behind. Collective."""
    return bool(world.gather(resume.is_finished(spec, layout, start.state.step))[0])


def take_over(world: World, layout: OutputLayout, start: ResumePoint | None) -> None:
    """Move an earlier run's files aside and mark the output folder as this run's. Collective. Raises JobError (73)."""
    problems = []
    if world.is_main:
        try:
            layout.root.mkdir(parents=True, exist_ok=True)
            aside = move_aside(layout, start) if start is None or start.is_branch else None
            layout.checkpoint.mkdir(exist_ok=True)
            exit_note.mark_started()
        except OSError as error:
            remedy = "Name a folder that can be written, or that can be created."
            problems = [bad_output("OUTPUT_DIR", f"cannot be written ({error})", remedy)]
        else:
            if aside:
                say(f"the files of an earlier run in {layout.root} are kept in {aside}")
            say(f"resuming from {start.folder}" if start else "starting from the beginning")
    world.agree(problems)


def move_aside(layout: OutputLayout, start: ResumePoint | None) -> Path | None:
    """Move the files of an earlier run to earlier-N/, and return that folder; None: there were none.

    Without a start, everything that training writes, also of a run that died before its first checkpoint;
    with one, the result and the later checkpoints.
    """
    if start is None:
        outputs = (
            layout.checkpoint,
            layout.tensorboard,
            layout.samples,
            layout.metrics,
            layout.report,
            layout.page,
        )
        items = [path for path in outputs if (_visible(path) if path.is_dir() else path.exists())]
    else:
        kept = {folder.path for folder in step_folders(layout) if folder.step <= start.state.step}
        items = [path for path in _visible(layout.checkpoint) if path not in kept]
    if not items:
        return None
    number = 1
    while (aside := layout.root / f"earlier-{number}").exists():
        number += 1
    for path in items:
        target = aside / path.relative_to(layout.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return aside


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder, without those of an interrupted save."""
    return [path for path in folder.glob("*") if not path.name.startswith(".")]
