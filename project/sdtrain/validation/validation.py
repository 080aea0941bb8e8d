"""Validation before, during and after training: samples of fixed prompts and seeds, and the held-out loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from sdjob import writing
from sdjob.dataset.images import ImageError
from sdjob.output.layout import OutputLayout
from sdtrain.model import generation
from sdtrain.reporting import metrics
from sdtrain.reporting.metrics import StepMetrics
from sdtrain.reporting.progress import Progress, say
from sdtrain.runtime import devices
from sdtrain.runtime.stop import Stopped
from sdtrain.training import Training
from sdtrain.validation import held_out_loss
from sdtrain.validation.grid import grid, image_name


def samples_folder(layout: OutputLayout, step: int) -> Path:
    return layout.samples / f"step-{step:06d}"


def is_due(training: Training, step: int) -> bool:
    """Whether training pauses for it after this step. The first one is before training, the last after the export."""
    spec = training.spec
    between = 0 < step < spec.max_train_steps
    return training.validates and between and spec.validation_steps > 0 and step % spec.validation_steps == 0


def is_complete(training: Training, step: int) -> bool:
    """Whether an earlier start has finished the validation of this step. Collective."""
    return training.world.from_main(lambda: _is_complete(training, step))


def _is_complete(training: Training, step: int) -> bool:
    """As the node sees it that writes the files; a shared folder may lag behind on others."""
    layout = training.context.layout
    if training.spec.validation_prompts and not _prompts_file(layout, step).exists():
        return False
    measured = (each.step for each in metrics.read(layout.metrics) if each.validation_loss is not None)
    return training.held_out is None or step in measured


def _prompts_file(layout: OutputLayout, step: int) -> Path:
    """Written when all samples of the step are there."""
    return samples_folder(layout, step) / "prompts.json"


def validate(training: Training, step: int) -> dict[str, float]:
    """Write samples and compute metrics after a step, where the settings ask for them. Collective.

    Returns and logs the metrics, by their names in StepMetrics. Raises Stopped when asked to stop before the end; the
    caller has to save.
    """
    if training.spec.validation_prompts:
        write_samples(training, step)
        training.tracker.event("validation", step)
    values: dict[str, Any] = {}
    if training.held_out is not None:
        values["validation_loss"] = held_out_loss.loss(training, training.held_out, step)
    devices.release_cache(training.world.device)  # of shapes that the next steps do not have
    if values:
        training.tracker.log(StepMetrics(step, **values))
        text = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
        training.world.say(f"{text} after step {step}")
    return values


def write_samples(training: Training, step: int) -> None:
    """Write the samples of a step, divided among the ranks, and show them in TensorBoard. Collective.

    Raises Stopped when asked to stop before all are generated.
    """
    spec, world = training.spec, training.world
    folder = samples_folder(training.context.layout, step)
    with training.with_final_weights():
        complete = _write_slice(training, folder)
    if world.any(not complete):
        raise Stopped(step)
    if world.is_main:
        text = json.dumps(list(spec.validation_prompts), indent=1, ensure_ascii=False)
        writing.write_text(_prompts_file(training.context.layout, step), f"{text}\n")
        sheet = grid({f"step {step}": folder}, spec.validation_prompts, spec.num_validation_images)
        training.tracker.image("validation", sheet, step)


def _write_slice(training: Training, folder: Path) -> bool:
    """Write this rank's slice of the samples; image i of every prompt always has the seed `seed + i`.

    Returns whether all of them were written: ends after an image when asked to stop.
    """
    spec, world = training.spec, training.world
    training.context.layout.make(folder)
    every = [(p, i) for p in range(len(spec.validation_prompts)) for i in range(spec.num_validation_images)]
    todo = every[world.rank :: world.size]
    prompts, seeds = [spec.validation_prompts[p] for p, _ in todo], [spec.seed + i for _, i in todo]
    images = generation.generate(training.parts, prompts, seeds, generation.generation_settings(spec))
    progress = Progress("validate", len(every), shown=world.is_main)
    for done, ((p, i), image) in enumerate(zip(todo, images, strict=True), start=1):
        writing.write_png(folder / image_name(p, i), image)
        progress.show(min(done * world.size, len(every)))
        if training.context.stop and done < len(todo):
            return False
    return True


def before_after(training: Training) -> Image.Image | None:
    """The grid of the first and the last samples; None if some are missing, as in some resumed runs, or damaged."""
    spec, layout = training.spec, training.context.layout
    before, after = samples_folder(layout, 0), samples_folder(layout, spec.max_train_steps)
    columns = {"before": before, f"after {spec.max_train_steps} steps": after}
    try:
        return grid(columns, spec.validation_prompts, spec.num_validation_images)
    except ImageError as error:
        say(
            f"no before/after grid: samples are missing or cannot be read in {before} or {after} ({error.reason})"
        )
        return None
