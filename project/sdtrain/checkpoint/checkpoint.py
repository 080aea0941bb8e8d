"""Step checkpoints: written to a temporary folder, completed by a manifest, committed by one rename."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from sdjob.output import run_settings
from sdjob.output.checkpoint_files import FORMAT, STATE
from sdjob.output.layout import OutputLayout, step_folders, write_manifest
from sdjob.output.newest_checkpoint import foreign_state, read_values
from sdjob.problems import JobError
from sdjob.writing import LinkError, discard, refuse_links, sync, sync_tree
from sdtrain.context import RunContext
from sdtrain.reporting.progress import say
from sdtrain.reporting.stopwatch import Spent
from sdtrain.runtime.distributed import World
from sdtrain.runtime.errors import is_write_failure, no_space, of_link

Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Write = Callable[[Path], None]  # puts weights and optimizer state into a folder; called on every rank


@dataclass(frozen=True)
class TrainState:
    """The progress of a run: all that the loop needs besides weights and optimizer state."""

    step: Count
    samples_seen: Count  # the next position in the sample stream
    loss: float  # the loss of the last step, mean over ranks and batches
    loss_sum: Finite  # over all steps so far, for the mean of the whole run
    fingerprint: dict[str, str]
    skipped_steps: Count = 0  # steps with a non-finite loss
    bad_samples: tuple[str, ...] = ()  # images that could not be used
    global_batch: Count = 0  # samples per optimizer step up to here; 0: not recorded
    origin: str = ""  # the checkpoint that `resume` named when the run went back to it; empty: none
    # By all starts up to this checkpoint; while a run continues, by those before this start.
    spent: Spent = field(default_factory=Spent)

    @property
    def mean_loss(self) -> float | None:
        """The mean loss of all applied steps; None: there are none."""
        applied = self.step - self.skipped_steps
        return self.loss_sum / applied if applied else None


def begin(context: RunContext, step: int) -> Path:
    """The empty folder that a checkpoint is written to. Collective. Raises JobError (73)."""
    final = context.layout.step_folder(step)
    temporary = final.with_name(f".{final.name}.tmp")
    with writing(temporary, context.world):
        if context.world.is_main:
            refuse_links(temporary.parent, context.layout.root)
            _delete_leftovers(context.layout)
            temporary.parent.mkdir(exist_ok=True)  # not the output folder itself, which may have been removed
            temporary.mkdir()
    return temporary


def complete(context: RunContext, state: TrainState, temporary: Path) -> None:
    """Add state and manifest to a folder with weights and optimizer state, and commit it. On one rank."""
    final = context.layout.step_folder(state.step)
    values = {"format": FORMAT, **asdict(state)}
    (temporary / STATE).write_text(json.dumps(values, indent=1) + "\n")
    run_settings.write(temporary, context.spec)
    write_manifest(temporary)
    sync_tree(temporary)
    discard(final)  # only ever a broken one: a complete one is resumed from
    temporary.rename(final)
    sync(final.parent)
    _delete_oldest(context.layout, state.step, context.spec.checkpoints_total_limit)
    say(f"saved {final}")


@contextmanager
def writing(temporary: Path, world: World) -> Iterator[None]:
    """End the run on every rank with 73 after a failed write; earlier checkpoints stay. Collective."""
    problems = []
    try:
        yield
    except Exception as error:
        if not is_write_failure(error):
            raise
        discard(temporary)
        found = f"the checkpoint could not be written to {temporary.parent} ({error})"
        problems = [of_link(error) if isinstance(error, LinkError) else no_space(found)]
    world.agree(problems)


def read_state(folder: Path) -> TrainState:
    """The state in a whole checkpoint; raises JobError (64) if an incompatible version wrote it."""
    values = read_values(folder)
    try:
        return TypeAdapter(TrainState).validate_python(values)  # without `past` of version 0.1
    except ValidationError as error:
        found = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())
        raise JobError(foreign_state(folder, found)) from error


def _delete_oldest(layout: OutputLayout, step: int, limit: int | None) -> None:
    """Delete the oldest complete ones beyond `limit`; those later than `step` belong to another branch, and stay."""
    complete = [folder for folder in step_folders(layout) if folder.defect is None and folder.step <= step]
    for folder in complete[limit:] if limit else []:
        # Renamed first: a half-deleted folder must not look like a checkpoint.
        gone = folder.path.with_name(f".{folder.path.name}.old")
        folder.path.rename(gone)
        discard(gone)


def _delete_leftovers(layout: OutputLayout) -> None:
    """Delete what a process left that died while it saved or deleted."""
    for path in layout.checkpoint.glob(".checkpoint-*"):
        discard(path)
