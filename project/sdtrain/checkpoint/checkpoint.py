"""Step checkpoints: written beside, made whole by a manifest, put in place by one rename; and resuming."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sdjob.output import resume as resuming
from sdjob.output.layout import OutputLayout, StepFolder, step_folders, write_manifest
from sdjob.output.resume import FORMAT, STATE, origin_of, values_of
from sdjob.problems import bad_output
from sdtrain.data.sampling import Past, Stretch
from sdtrain.reporting.progress import say
from sdtrain.reporting.stopwatch import Spent
from sdtrain.runtime.distributed import World
from sdtrain.runtime.errors import is_write_failure


@dataclass(frozen=True)
class TrainState:
    """Where a run is: all that the loop needs besides weights and optimizer."""

    step: int
    place: int  # of the stream of samples: the next one to train on
    loss: float  # of the last step, mean over ranks and batches
    loss_sum: float  # of all steps so far, for the mean of the whole run
    fingerprint: dict[str, str]
    skipped_steps: int = 0  # whose loss was no number
    bad_samples: tuple[str, ...] = ()  # images that could not be used
    past: Past = ()  # the sizes of its steps: what they took of each bucket follows from them
    origin: str = ""  # the checkpoint that `resume` named when this course began; empty: none
    # By all starts up to this checkpoint; while a run goes on, by those before this one.
    spent: Spent = field(default_factory=Spent)


def save(
    layout: OutputLayout,
    state: TrainState,
    write: Callable[[Path], None],
    world: World,
    limit: int | None,
) -> Path:
    """Saves a whole checkpoint, or leaves none; then forgets the oldest beyond `limit`. Collective.

    `write` puts weights and optimizer into the folder that it gets; it is called on every rank.
    """
    # Each block ends with an agreement, so that no rank goes on to the next before all have left this one.
    temporary = begin(layout, state.step, world)
    with writing(temporary, world):
        write(temporary)
    with writing(temporary, world):
        if world.is_main:
            complete(layout, state, temporary, limit)
    return layout.step_folder(state.step)


def begin(layout: OutputLayout, step: int, world: World) -> Path:
    """The empty folder that a checkpoint is written into. Collective. Raises JobError (73)."""
    final = layout.step_folder(step)
    temporary = final.with_name(f".{final.name}.tmp")
    with writing(temporary, world):
        if world.is_main:
            _sweep(layout)
            temporary.mkdir(parents=True)
    return temporary


def complete(layout: OutputLayout, state: TrainState, temporary: Path, limit: int | None) -> None:
    """Makes a checkpoint of a folder with weights and optimizer, and puts it in place. By one rank."""
    final = layout.step_folder(state.step)
    values = {"format": FORMAT, **asdict(state)}
    (temporary / STATE).write_text(json.dumps(values, indent=1) + "\n")
    write_manifest(temporary)
    sync_tree(temporary)
    shutil.rmtree(final, ignore_errors=True)  # only ever a broken one: a whole one is resumed from
    temporary.rename(final)
    sync_folder(final.parent)
    _forget(layout, state.step, limit)


@contextmanager
def writing(temporary: Path, world: World) -> Iterator[None]:
    """A failed write ends the run on every rank with 73; earlier checkpoints stay. Collective."""
    problems = []
    try:
        yield
    except Exception as error:
        if not is_write_failure(error):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        problems = [
            bad_output(
                "OUTPUT_DIR",
                f"the checkpoint could not be written to {temporary.parent} ({error})",
                "Make room or lower checkpoints_total_limit; the next start resumes from the last checkpoint.",
            )
        ]
    world.agree(problems)


def newest(layout: OutputLayout, resume: str) -> StepFolder | None:
    """The checkpoint that `resume` means, verified byte by byte; None: start afresh. Raises JobError (64).

    Newer ones that are not whole are named with the reason, and left alone.
    """

    def passed_over(folder: StepFolder, defect: str) -> None:
        say(f"checkpoint {folder.path.name} is not whole and is passed over: {defect}")

    return resuming.newest(layout, resume, passed_over, hashes=True)


def begins_a_course(start: StepFolder, resume: str) -> bool:
    """Whether a run goes back to a folder that `resume` names, rather than on from where it was."""
    origin = origin_of(resume)
    return bool(origin) and read_state(start.path).origin != origin


def read_state(folder: Path) -> TrainState:
    """The state in a whole checkpoint; raises JobError (64) if another version of this project wrote it."""
    values = values_of(folder)
    past = tuple(Stretch(**stretch) for stretch in values.pop("past", ()))
    if not past and values["step"]:  # written before it was kept: all steps were taken alike
        past = (Stretch(values["step"], values["place"] // values["step"]),)
    spent = Spent(**values.pop("spent", {}))
    bad_samples = tuple(values.pop("bad_samples", ()))
    return TrainState(**values, past=past, bad_samples=bad_samples, spent=spent)


def move_aside(layout: OutputLayout, start: StepFolder | None) -> Path | None:
    """Keeps what an earlier course of training left, when another begins in the same place.

    Without a start, everything that training writes, also where the earlier run died before its first checkpoint;
    with one, the result and the later checkpoints.
    Returns where it is kept now; None: there was nothing.
    """
    if start is None:
        places = (
            layout.checkpoint,
            layout.tensorboard,
            layout.samples,
            layout.metrics,
            layout.report,
            layout.page,
        )
        items = [path for path in places if _holds_something(path)]
    else:
        kept = {folder.path for folder in step_folders(layout) if folder.step <= start.step}
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
    """What lies in a folder, without what a save that was cut short left there."""
    return [path for path in folder.glob("*") if not path.name.startswith(".")]


def _holds_something(path: Path) -> bool:
    return bool(_visible(path)) if path.is_dir() else path.exists()


def sync_tree(folder: Path) -> None:
    """Has every file and folder below on the disk, so that a rename never outruns the bytes.

    And readable for those who may look into its folder: safetensors writes files that are for their owner only.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with suppress(OSError):  # storage that knows no modes
                path.chmod(path.stat().st_mode | path.parent.stat().st_mode & 0o666)
        sync_folder(path)
    sync_folder(folder)


def sync_folder(path: Path) -> None:
    """fsync of a file or a folder; of a folder where the file system can, since some know it of files alone."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def _forget(layout: OutputLayout, step: int, limit: int | None) -> None:
    """Deletes the oldest whole ones beyond `limit`; later ones than `step` are of another course, and stay."""
    whole = [folder for folder in step_folders(layout) if folder.defect is None and folder.step <= step]
    for folder in whole[limit:] if limit else []:
        # Renamed first: a folder that is half deleted must not look like a checkpoint.
        gone = folder.path.with_name(f".{folder.path.name}.old")
        folder.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _sweep(layout: OutputLayout) -> None:
    """Deletes what a process left that died while it saved or deleted."""
    for path in layout.checkpoint.glob(".checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
