"""A run from its settings to its result: resolve, resume, load, train, finish."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from sdjob import files
from sdjob.formatting import counted
from sdjob.model import trainable
from sdjob.model.pipeline import PipelineFolder
from sdjob.output import fingerprint
from sdjob.output.layout import OutputLayout
from sdjob.settings import flags
from sdjob.settings.run_spec import RunSpec
from sdtrain import resolve, strategies
from sdtrain.architectures.base import Parts
from sdtrain.checkpoint import resume
from sdtrain.checkpoint.checkpoint import TrainState
from sdtrain.checkpoint.resume import ResumePoint
from sdtrain.context import Training
from sdtrain.data.cached_encodings import Caching
from sdtrain.data.examples import prepare_examples
from sdtrain.data.sampling import BatchShape
from sdtrain.data.streams import Stream, StreamSet
from sdtrain.export import export, model_card
from sdtrain.loop import train_steps
from sdtrain.model import attention, check_tensors, convert, load
from sdtrain.model.trainable_model import TrainableModel
from sdtrain.optim.ema import Ema
from sdtrain.recipes import RECIPES
from sdtrain.recipes.base import RecipeInput, open_images
from sdtrain.reporting import html, metrics, report
from sdtrain.reporting.progress import say
from sdtrain.reporting.report import Outcome
from sdtrain.reporting.tracker import Tracker, tracker
from sdtrain.resolve import Inputs
from sdtrain.runtime.distributed import World
from sdtrain.runtime.stop import Stopped, StopRequest
from sdtrain.strategies.base import optim_spec
from sdtrain.validation import validation
from sdtrain.validation.held_out_images import HeldOut, hold_out


@dataclass(frozen=True)
class _Loaded:
    """Model and data in memory, before the model is sharded and the data cached."""

    parts: Parts
    model: TrainableModel
    streams: tuple[Stream, ...]
    held_out: HeldOut | None


def run(requested: RunSpec, world: World, stop: StopRequest) -> None:
    """Train, and leave the result under `output_dir`. Collective. Raises JobError, Stopped."""
    layout = OutputLayout(Path(requested.output_dir))
    inputs = resolve.find_inputs(requested)
    spec = resolve.resolve(requested, world, inputs)
    check_tensors.check(inputs.model, world)
    inputs = replace(inputs, model=convert.as_folder(inputs.model, spec, world, stop))
    identity = fingerprint.model_identity(inputs.model)
    facts = resolve.facts_to_compare(spec, world, inputs, identity)
    start = resume.find(spec, world, layout, facts)
    if start:
        last = resolve.num_steps(requested, world, inputs, start.state)
        spec = spec.model_copy(update={"max_train_steps": last})
        if resume.is_finished(spec, world, layout, start):
            _say(
                world, f"already finished: {start.state.step} steps of {last}, result in {layout.checkpoint}"
            )
            return
    first_step = start.state.step if start else 0
    loaded = _load(spec, world, layout, inputs, identity, stop, first_step)
    if world.any(bool(stop)):
        raise Stopped(first_step)
    # The inputs are known to be good by now: only now may the files of an earlier run be moved aside.
    resume.take_over(world, layout, start)
    caching = Caching(spec, world, layout, loaded.parts, stop, first_step)
    examples = prepare_examples(caching, loaded.streams)
    with tracker(layout, first_step, writing=world.is_main) as tracking:
        training = _prepare(spec, world, layout, loaded, examples, tracking, stop)
        outcome = _train(training, start, facts)
        _finish(training, inputs.model, outcome)


def _load(
    spec: RunSpec,
    world: World,
    layout: OutputLayout,
    inputs: Inputs,
    identity: str,
    stop: StopRequest,
    first_step: int,
) -> _Loaded:
    """Open the images and load the model. Collective. Raises JobError, Stopped."""
    prompts = tuple(concept.instance_prompt for concept in inputs.concepts) if spec.concepts_list else ()
    images = open_images(spec, world, inputs.datasets, prompts)
    images, held_out = hold_out(spec, world, images, [info.num_examples for info in inputs.datasets])
    parts = load.load(
        inputs.model,
        spec.mixed_precision,
        world.device,
        allow_pickle=spec.allow_pickle,
        lora=spec.lora_rank > 0,
        train_text_encoder=spec.train_text_encoder,
        zero_snr=spec.rescale_betas_zero_snr,
    )
    attention.prove(spec.attention, parts.denoiser, world.device, parts.dtype)
    _report_attention(spec, world, parts)
    recipe = RECIPES[spec.recipe]
    streams = recipe.streams(
        RecipeInput(spec, world, layout, parts, inputs.datasets, images, identity, stop, first_step)
    )
    return _Loaded(parts, load.make_trainable(parts, spec), streams, held_out)


def _report_attention(spec: RunSpec, world: World, parts: Parts) -> None:
    """Name the attention kernel; without a fused one a device is slow, and nothing else tells the user."""
    kernel = attention.running(spec.attention, parts.denoiser, world.device, parts.dtype)
    _say(world, f"attention: {kernel}" + (f" ({spec.attention})" if spec.attention != kernel else ""))
    if spec.attention in ("auto", "sdpa") and "math" in kernel and world.device_type.name != "cpu":
        remedy = "mixed_precision=bf16 may help"
        _say(world, f"warning: PyTorch has no fused attention for {parts.dtype} on this device; {remedy}")


def _prepare(
    spec: RunSpec,
    world: World,
    layout: OutputLayout,
    loaded: _Loaded,
    examples: StreamSet,
    tracking: Tracker,
    stop: StopRequest,
) -> Training:
    """Shard or wrap the trainable model, and put everything together. Collective."""
    encoders = loaded.parts.text_encoders if spec.train_text_encoder else ()
    strategy = strategies.create(spec, world.device, world.size)
    strategy.prepare(loaded.model, optim_spec(spec, loaded.parts.architecture.facts.denoiser, encoders))
    return Training(
        spec,
        world,
        layout,
        BatchShape(spec.train_batch_size, spec.gradient_accumulation_steps, world.size),
        loaded.parts,
        examples,
        strategy,
        Ema(strategy.masters(), spec.ema_decay) if spec.use_ema else None,
        tracking,
        stop,
        loaded.held_out,
    )


def _train(training: Training, start: ResumePoint | None, facts: dict[str, str]) -> Outcome:
    """Train from a checkpoint or from the beginning to the last step. Collective."""
    spec = training.spec
    training.tracker.text("settings", "\n".join(f"    {flag}" for flag in flags.render(spec)))
    if start:
        state = _resumed(training, start.state)
        training.strategy.load(start.folder, training.ema.shards if training.ema else None)
        if training.ema:
            training.ema.resume(updates=state.step - state.skipped_steps)
    else:
        state = TrainState(step=0, samples_seen=0, loss=math.nan, loss_sum=0.0, fingerprint=facts)
        validation.validate(training, 0)
    _say(training.world, _announcement(training, state.step + 1))
    return train_steps(training, state)


def _resumed(training: Training, state: TrainState) -> TrainState:
    """The state to go on from; with buckets and another global batch, at the next epoch."""
    position = training.examples.resume_at(state.samples_seen, state.global_batch)
    if position != state.samples_seen:
        skipped = counted(position - state.samples_seen, "image")
        found = "the checkpoint was written with another global batch"
        _say(training.world, f"buckets: {found}; training continues at the next epoch, {skipped} are skipped")
    return replace(state, samples_seen=position)


def _announcement(training: Training, first: int) -> str:
    """Steps, images and devices: all processes are there, and these are the numbers that the launcher did not know."""
    spec, world, last = training.spec, training.world, training.spec.max_train_steps
    steps = (
        "no more steps" if first > last else f"step {last}" if first == last else f"steps {first} to {last}"
    )
    return (
        f"training: {steps}, {training.shape.global_batch} a step of {counted(training.num_examples, 'image')}; "
        f"{world.size} × {world.device_type.name}, precision {spec.mixed_precision}"
    )


def _finish(training: Training, model: PipelineFolder, outcome: Outcome) -> None:
    """Export first, then generate the last images and write the report. Collective."""
    spec, world, layout, parts = training.spec, training.world, training.layout, training.parts
    weights = training.strategy.full_state(training.final_weights)
    if world.is_main:
        export.export(layout.checkpoint, model, parts, weights, spec)
    loss = validation.validate(training, spec.max_train_steps)
    kernel = attention.running(spec.attention, parts.denoiser, world.device, parts.dtype)
    facts = parts.architecture.facts
    values = {
        "model": facts.name,
        "trained": "lora" if spec.lora_rank else facts.denoiser,
        **report.report(spec, world, training.shape, outcome, kernel),
        "trained_parts": list(trainable.parts(spec, model)),
        "validation_loss": loss,
        "held_out_examples": len(training.held_out.images) if training.held_out else 0,
    }
    if world.is_main:
        _write_report(training, values)
    _say(world, f"finished: {outcome.last_step} steps, result in {layout.checkpoint}")


def _write_report(training: Training, values: dict[str, object]) -> None:
    """Model card, report and page, with the grid of images before and after training."""
    spec, layout = training.spec, training.layout
    grid = validation.before_after(training) if spec.validation_prompts else None
    if grid:
        files.write_png(layout.before_after, grid)
        files.write_png(layout.checkpoint / model_card.SAMPLES, grid)
    card = model_card.render(spec, training.parts.architecture.facts, values, samples=grid is not None)
    files.write_text(layout.checkpoint / model_card.FILE, card)
    report.write(layout.report, values)
    image = layout.before_after.relative_to(layout.root).as_posix() if grid else None
    files.write_text(layout.page, html.render(values, metrics.read(layout.metrics), image))


def _say(world: World, text: str) -> None:
    if world.is_main:
        say(text)
