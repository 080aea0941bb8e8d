"""Validation: samples of the same prompts and seeds, and the loss on held-out images, before, during and after."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sdjob.output.layout import OutputLayout
from sdtrain import generate
from sdtrain.context import Training
from sdtrain.reporting.progress import say
from sdtrain.runtime.stop import Stopped
from sdtrain.validation import held_out_loss


def folder_of(layout: OutputLayout, step: int) -> Path:
    return layout.samples / f"step-{step:06d}"


def validate(training: Training, step: int) -> float | None:
    """Samples and held-out loss after a step, as far as they were asked for; returns the loss. Collective.

    Raises Stopped when asked to stop before all is drawn and measured; who calls this has to save.
    """
    if training.spec.validation_prompts:
        draw(training, step)
    if training.held_out is None:
        return None
    loss = held_out_loss.loss(training, training.held_out)
    if loss is None:
        raise Stopped(step)
    training.tracker.scalars({"validation/loss": loss}, step)
    if training.world.is_main:
        say(f"validation loss {loss:.4f} after step {step}")
    return loss


def draw(training: Training, step: int) -> None:
    """Writes the samples of a step, shared out over the ranks, and shows them in TensorBoard. Collective.

    Raises Stopped when asked to stop before all are drawn.
    """
    spec, world = training.spec, training.world
    folder = folder_of(training.layout, step)
    how = generate.drawing(spec)
    share = slice(world.rank, None, world.size)
    wanted = spec.validation_prompts, spec.num_validation_images, spec.seed
    with training.averaged():
        complete = generate.draw_samples(training.parts, *wanted, how, folder, share, training.stop)
    if world.any(not complete):
        raise Stopped(step)
    if world.is_main:
        generate.write_prompts(folder, spec.validation_prompts)
        sheet = generate.grid({f"step {step}": folder}, spec.validation_prompts, spec.num_validation_images)
        training.tracker.image("validation", sheet, step)


def before_after(training: Training) -> Image.Image | None:
    """The grid of the first and the last samples; None where a resumed run has no first ones."""
    spec, layout = training.spec, training.layout
    before, after = folder_of(layout, 0), folder_of(layout, spec.max_train_steps)
    try:
        return generate.grid(
            {"before": before, f"after {spec.max_train_steps} steps": after},
            spec.validation_prompts,
            spec.num_validation_images,
        )
    except FileNotFoundError:
        say(f"no before/after grid: the samples in {before} are not all there")
        return None
