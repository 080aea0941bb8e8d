"""A run from its settings to its result: resolve, resume, load, train, finish."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from textwrap import indent

from sdjob import protocol, writing
from sdjob.formatting import counted
from sdjob.model import memory_estimate
from sdjob.model.pipeline import PipelineFolder
from sdjob.output import fingerprint, newest_checkpoint
from sdjob.output.layout import OutputLayout
from sdjob.page import page
from sdjob.page.curves import Curves
from sdjob.page.data import collect
from sdjob.settings import flags
from sdjob.settings.run_spec import RunSpec
from sdtrain import resolve, strategies
from sdtrain.architectures.base import Parts
from sdtrain.checkpoint import start_point, state_io
from sdtrain.checkpoint.checkpoint import TrainState
from sdtrain.checkpoint.start_point import ResumePoint
from sdtrain.context import RunContext
from sdtrain.data.examples import prepare_examples
from sdtrain.data.training_images import TrainingImages
from sdtrain.export import export, model_card
from sdtrain.loop import train_steps
from sdtrain.model import attention, check_tensors, compilation, convert, load
from sdtrain.objective import diffusion
from sdtrain.optim.ema import Ema
from sdtrain.recipes import RECIPES
from sdtrain.recipes.base import RecipeInput, open_images
from sdtrain.reporting import contact_sheet, report
from sdtrain.reporting.report import Outcome
from sdtrain.reporting.stopwatch import Spent
from sdtrain.reporting.tracker import tracker
from sdtrain.resolve import Inputs
from sdtrain.runtime.distributed import World
from sdtrain.runtime.stop import StopRequest
from sdtrain.strategies.base import optim_spec
from sdtrain.training import Training
from sdtrain.validation import validation
from sdtrain.validation.held_out_images import HeldOut, hold_out


def run(requested: RunSpec, world: World, stop: StopRequest) -> None:
    """Train, and leave the result under `output_dir`. Collective. Raises JobError, Stopped."""
    inputs = resolve.find_inputs(requested)
    spec = resolve.resolve(requested, world, inputs)
    context = RunContext(spec, world, OutputLayout(Path(spec.output_dir)), stop)
    world.from_main(context.layout.refuse_links)
    check_tensors.check(inputs.model, world)
    inputs = replace(inputs, model=convert.as_folder(inputs.model, spec, world, stop))
    model, datasets = inputs.model, inputs.datasets
    own = fingerprint.model_facts(model)
    facts = world.from_main(
        lambda: fingerprint.facts_of(spec, model.architecture, own, datasets, inputs.concepts)
    )
    start = world.from_main(
        lambda: start_point.find(context, facts, memory_estimate.largest_checkpoint(model))
    )
    if start:
        last = resolve.num_steps(requested, world, inputs, start.state)
        spec = spec.model_copy(update={"max_train_steps": last})
        context = replace(context, spec=spec, first_step=start.state.step)
        # On other nodes a shared folder may lag behind.
        if world.from_main(lambda: newest_checkpoint.is_finished(spec, context.layout, context.first_step)):
            steps = f"{context.first_step} steps of {last}"
            world.say(f"already finished: {steps}, result in {context.layout.checkpoint}")
            return
    images, held_out = _open_images(context, inputs)
    parts = _load_parts(context, model)
    streams = RECIPES[spec.recipe](
        RecipeInput(context, parts, datasets, images, fingerprint.model_content(model))
    )
    trainable_model = load.make_trainable(parts, spec)
    context.end_if_stopped()
    # The inputs are known to be good by now: only now may the files of an earlier run be moved aside.
    world.from_main(lambda: start_point.take_over(context.layout, start))
    examples = prepare_examples(context, model, parts, streams)
    loss_of = compilation.compiled(diffusion.loss_of, trainable_model, spec, examples.num_sizes)
    strategy = strategies.create(spec, world.device)
    encoders = parts.text_encoders if spec.train_text_encoder else ()
    strategy.prepare(trainable_model, optim_spec(spec, parts.architecture.facts.denoiser, encoders))
    ema = Ema(strategy.masters(), spec.ema_decay) if spec.use_ema else None
    with tracker(spec, context.layout, context.first_step, world.say, writing=world.is_main) as tracking:
        training = Training(context, parts, examples, strategy, ema, tracking, held_out, loss_of)
        outcome = _train(training, start, facts)
        _finish(training, model, outcome)


def _open_images(context: RunContext, inputs: Inputs) -> tuple[TrainingImages, HeldOut | None]:
    """The images to train on and those held out. Collective. Raises JobError (66)."""
    several = context.spec.concepts_list is not None
    prompts = [concept.instance_prompt for concept in inputs.concepts] if several else []
    images = open_images(context, inputs.datasets, prompts)
    return hold_out(context, images, [info.num_examples for info in inputs.datasets])


def _load_parts(context: RunContext, model: PipelineFolder) -> Parts:
    """Load the model, and prove its attention kernel. Raises JobError."""
    spec, world = context.spec, context.world
    parts = load.load(
        model,
        spec.mixed_precision,
        world.device,
        allow_pickle=spec.allow_pickle,
        lora=spec.lora_rank > 0,
        train_text_encoder=spec.train_text_encoder,
        zero_snr=spec.rescale_betas_zero_snr,
    )
    side = spec.resolution // parts.latent_factor
    attention.prove(spec.attention, parts.denoiser, world.device, parts.dtype, side)
    kernel = attention.running(spec.attention, parts.denoiser, world.device, parts.dtype)
    world.say(f"attention: {kernel}" + (f" ({spec.attention})" if spec.attention != kernel else ""))
    for name, reason in attention.left_out(spec.attention).items():
        world.say(f"attention: not {name}: {reason}")
    # Without a fused kernel a device is slow, and nothing else tells the user.
    if spec.attention in ("auto", "sdpa") and "math" in kernel and world.device_type.name != "cpu":
        found = f"PyTorch has no fused attention for {parts.dtype} on this device"
        world.say(f"warning: {found}; mixed_precision=bf16 may help")
    return parts


def _train(training: Training, start: ResumePoint | None, facts: dict[str, str]) -> Outcome:
    """Train from a checkpoint or from the beginning to the last step. Collective."""
    spec, world = training.spec, training.world
    training.tracker.text("settings", indent("\n".join(flags.render(spec)), "    "))
    if start:
        state = _resumed(training, start.state)
        with state_io.loading(start.folder):
            training.strategy.load(start.folder, training.ema_shards)
        if training.ema:
            training.ema.resume(updates=state.step - state.skipped_steps)
        contact_sheet.write(training, state.samples_seen)
        if validation.is_due(training, state.step) and not validation.is_complete(training, state.step):
            validation.validate(training, state.step)
    else:
        spent = Spent() if spec.resume == "never" else Spent().and_unsaved(training.context.layout)
        state = TrainState(0, samples_seen=0, loss=math.nan, loss_sum=0.0, fingerprint=facts, spent=spent)
        contact_sheet.write(training, state.samples_seen)
        validation.validate(training, 0)
    announcement = _announcement(training, state.step + 1)
    world.say(announcement)
    training.tracker.event("training", state.step, announcement.removeprefix("training: "))
    return train_steps(training, state)


def _resumed(training: Training, state: TrainState) -> TrainState:
    """The state to go on from; with buckets and another global batch, at the next epoch."""
    position = training.examples.resume_at(state.samples_seen, state.global_batch)
    if position != state.samples_seen:
        skipped = counted(position - state.samples_seen, "image")
        found = "the checkpoint was written with another global batch"
        training.world.say(f"buckets: {found}; training continues at the next epoch, {skipped} are skipped")
    return replace(state, samples_seen=position)


def _announcement(training: Training, first: int) -> str:
    """Steps, images and devices: all processes are there, and these are the numbers that the launcher did not know."""
    spec, world, last = training.spec, training.world, training.spec.max_train_steps
    steps = (
        f"steps {first} to {last}" if first < last else f"step {last}" if first == last else "no more steps"
    )
    return (
        f"training: {steps}; {training.shape.global_batch} of {counted(training.num_examples, 'image')} in a step; "
        f"{world.size} × {world.device_type.name}; "
        + ("fp32" if spec.mixed_precision == "no" else spec.mixed_precision)
        + (f"; compile={spec.compile}" if spec.compile != "off" else "")
    )


def _finish(training: Training, model: PipelineFolder, outcome: Outcome) -> None:
    """Export first, then generate the last images and write the report. Collective."""
    spec, world, layout = training.spec, training.world, training.context.layout
    training.strategy.finish()
    weights = training.strategy.full_state(training.final_weights)
    if world.is_main:
        layout.make(layout.checkpoint)
        export.export(layout.checkpoint, model, training.parts, weights, spec)
    validated = validation.validate(training, spec.max_train_steps)
    values = report.report(training, model, outcome, validated)
    if world.is_main:
        _write_report(training, values)
    where = f", result in {layout.checkpoint}; open {layout.page}"
    has_launcher = protocol.launcher_pid(os.environ) is not None  # which says that last, after the upload
    world.say(f"finished: {outcome.state.step} steps{'' if has_launcher else where}")


def _write_report(training: Training, values: dict[str, object]) -> None:
    """Model card, report and page, with the grid of images before and after training."""
    spec, layout = training.spec, training.context.layout
    grid = validation.before_after(training) if spec.validation_prompts else None
    layout.make(layout.checkpoint)
    if grid:
        layout.make(layout.samples)
        writing.write_png(layout.before_after, grid)
        writing.write_png(layout.checkpoint / model_card.SAMPLES, grid)
    card = model_card.render(spec, training.parts.architecture.facts, values, samples=grid is not None)
    writing.write_text(layout.checkpoint / model_card.FILE, card)
    page.write(layout, collect(layout, Curves(layout.metrics), report=values))
    report.write(layout.report, values)  # last: from here on the run is finished
