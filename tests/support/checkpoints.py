"""Small checkpoints with one file of weights, and ways to damage them."""

import os
from pathlib import Path

from sdjob.output.checkpoint_files import MANIFEST, MODEL
from sdtrain.checkpoint.background import Saver
from sdtrain.checkpoint.checkpoint import TrainState
from sdtrain.reporting.stopwatch import Spent
from tests.support.worker import context_of

FACTS = {"seed": "7", "recipe": "dreambooth"}


def state(step: int) -> TrainState:
    return TrainState(
        step,
        samples_seen=10 * step,
        loss=0.5,
        loss_sum=0.5 * step,
        fingerprint=FACTS,
        global_batch=10,
        spent=Spent(2.5, 5.0),
    )


def save(layout, step, *, limit=None, write=None) -> Path:
    def weights(folder: Path) -> None:
        (folder / MODEL).write_bytes(bytes([step]) * 1000)

    with Saver(context_of(layout, checkpoints_total_limit=limit)) as saver:
        saver.write(state(step), write or weights)
    return layout.step_folder(step)


def names(layout) -> list[str]:
    return sorted(path.name for path in layout.checkpoint.iterdir())


def spoil(folder: Path, how: str) -> None:
    """Damage a checkpoint in one way."""
    if how == "no manifest":
        (folder / MANIFEST).unlink()
    elif how == "half a manifest":
        (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:20])
    elif how == "not a manifest":
        (folder / MANIFEST).write_text("[]")
    elif how == "file gone":
        (folder / MODEL).unlink()
    elif how == "file cut":
        os.truncate(folder / MODEL, 10)
    else:
        (folder / MODEL).write_bytes(b"x" * 1000)


REASONS = {
    "no manifest": "manifest.json is missing: the save did not finish",
    "half a manifest": "manifest.json cannot be read",
    "not a manifest": "manifest.json cannot be read",
    "file gone": f"{MODEL} is missing",
    "file cut": f"{MODEL} has 10 bytes instead of 1000",
    "changed byte": f"{MODEL} has changed since it was saved",
}
