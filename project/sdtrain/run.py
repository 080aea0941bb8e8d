"""A run from its settings to its result: check, load, resume, train, export, report."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from sdjob.dataset import validation_split
from sdjob.dataset.concepts import Concept, concepts_of
from sdjob.dataset.detect import DatasetInfo, dataset_in
from sdjob.formatting import counted
from sdjob.model import fit, trainable
from sdjob.model.pipeline import PipelineFolder, find_pipeline
from sdjob.output import fingerprint, resume
from sdjob.output.layout import OutputLayout, StepFolder
from sdjob.problems import JobError, Problem, bad_output, bad_setting
from sdjob.settings import compatibility, flags
from sdjob.settings import steps as step_counts
from sdjob.settings.run_spec import RunSpec
from sdtrain import architectures, strategies
from sdtrain.checkpoint import checkpoint
from sdtrain.checkpoint.checkpoint import TrainState
from sdtrain.context import Training
from sdtrain.data.buckets import Buckets, bucketed
from sdtrain.data.cached_encodings import Caching, cached_latents, cached_prompts, every_prompt
from sdtrain.data.images import TrainingImages
from sdtrain.data.sampling import BatchShape
from sdtrain.data.scan import filled
from sdtrain.data.streams import Stream, StreamSet, prompts_of
from sdtrain.export import export, model_card
from sdtrain.loop import train_steps
from sdtrain.model import attention, convert, load, tokenize
from sdtrain.model.denoiser import UNET, Denoiser
from sdtrain.model.load import Parts
from sdtrain.optim.ema import Ema
from sdtrain.recipes import RECIPES
from sdtrain.recipes.base import RecipeInput, open_images
from sdtrain.reporting import html, metrics, report
from sdtrain.reporting.progress import say
from sdtrain.reporting.report import Outcome
from sdtrain.reporting.tracker import Tracker, tracker
from sdtrain.runtime import devices, exit_note
from sdtrain.runtime.distributed import World
from sdtrain.runtime.stop import Stopped, StopRequest
from sdtrain.strategies.base import OptimSpec, ParameterGroup
from sdtrain.validation import validation
from sdtrain.validation.held_out_images import HeldOut, hold_out


def run(spec: RunSpec, world: World, stop: StopRequest) -> None:
    """Trains, and leaves the result under `output_dir`. Collective. Raises JobError, Stopped."""
    layout = OutputLayout(Path(spec.output_dir))
    if spec.resume == "never" and world.gather(exit_note.has_begun())[0]:
        spec = spec.model_copy(update={"resume": "auto"})  # a crash of this very run is no new start
    folder, concepts, infos = _inputs(spec)
    num_examples = sum(validation_split.trained_on(spec, info.num_examples) for info in infos)
    epochs = spec.num_train_epochs if step_counts.by_epochs(spec) else None
    spec = _resolved(spec, world, folder, num_examples)
    folder = convert.as_folder(folder, spec, world, stop)
    identity = fingerprint.model_identity(folder)
    facts = _facts(spec, world, identity, infos, concepts)
    start = _resume_point(spec, world, layout, facts)
    if start and epochs:
        state = checkpoint.read_state(start.path)
        last = step_counts.steps_of(
            epochs, spec, num_examples, world.size, step=state.step, place=state.place
        )
        spec = spec.model_copy(update={"max_train_steps": last})
    if start and _is_finished(spec, world, layout, start):
        if world.is_main:
            say(
                f"already finished: {start.step} steps of {spec.max_train_steps}, result in {layout.checkpoint}"
            )
        return
    images = open_images(spec, world, infos, _prompts(spec, concepts))
    images, held_out = hold_out(spec, world, images, [info.num_examples for info in infos])
    parts = load.load(
        folder,
        spec.mixed_precision,
        world.device,
        allow_pickle=spec.allow_pickle,
        lora=spec.lora_rank > 0,
        train_text_encoder=spec.train_text_encoder,
        zero_snr=spec.rescale_betas_zero_snr,
    )
    attention.prove(spec.attention, parts.unet, world.device, parts.dtype)
    if world.is_main:
        _say_attention(spec, world, parts)
    given = RecipeInput(spec, world, layout, parts, infos, images, identity, stop, start.step if start else 0)
    streams = RECIPES[spec.recipe].streams(given)
    denoiser = load.make_trainable(parts, spec)
    if world.any(bool(stop)):
        raise Stopped(start.step if start else 0)
    # All that can be wrong with the inputs is known by now: what an earlier run left may be put aside.
    _begin(spec, world, layout, start)
    if world.is_main:
        _warn_of_cut_prompts(spec, parts, streams)
    examples = _examples(Caching(spec, world, layout, parts, stop, start.step if start else 0), streams)
    with tracker(layout, start.step if start else 0, writing=world.is_main) as tracking:
        training = _training(given, denoiser, examples, held_out, tracking)
        _train(training, folder, start, facts)


def _train(
    training: Training, folder: PipelineFolder, start: StepFolder | None, facts: dict[str, str]
) -> None:
    """Trains from a checkpoint or from the beginning; exports, draws and reports. Collective."""
    spec, world = training.spec, training.world
    training.tracker.text("settings", "\n".join(f"    {flag}" for flag in flags.render(spec)))
    state = TrainState(step=0, place=0, loss=math.nan, loss_sum=0.0, fingerprint=facts)
    if start:
        state = checkpoint.read_state(start.path)
        state = replace(state, origin=resume.origin_of(spec.resume) or state.origin)
        training.strategy.load(start.path, training.ema.shares if training.ema else None)
        if training.ema:
            training.ema.resume(updates=state.step - state.skipped_steps)
    else:
        validation.validate(training, 0)
    if world.is_main:
        say(_what_begins(training, state))
    _, outcome = train_steps(training, state)
    _finish(training, folder, outcome)


def _finish(training: Training, folder: PipelineFolder, outcome: Outcome) -> None:
    """Puts the result in place first, then the images and the report. Collective."""
    spec, world, layout = training.spec, training.world, training.layout
    weights = training.strategy.full_state(training.best)
    if world.is_main:
        export.export(layout.checkpoint, folder, training.parts, weights, spec)
    loss = validation.validate(training, spec.max_train_steps)
    sheet = validation.before_after(training) if spec.validation_prompts and world.is_main else None
    parts = training.parts
    attends = attention.running(spec.attention, parts.unet, world.device, parts.dtype)
    values = {
        "model": architectures.of(parts).name,
        **report.report(spec, world, training.shape, outcome, attends),
        "trained_parts": list(trainable.parts(spec, folder)),
        "validation_loss": loss,
        "held_out_examples": len(training.held_out.images) if training.held_out else 0,
    }
    if world.is_main:
        if sheet:
            sheet.save(layout.before_after)
            sheet.save(layout.checkpoint / model_card.SAMPLES)
        about = model_card.render(spec, values, samples=sheet is not None, class_name=parts.class_name)
        (layout.checkpoint / model_card.FILE).write_text(about, encoding="utf-8")
        report.write(layout.report, values)
        image = layout.before_after.relative_to(layout.root).as_posix() if sheet else None
        layout.page.write_text(html.render(values, metrics.read(layout.metrics), image), encoding="utf-8")
        say(f"finished: {outcome.last_step} steps, result in {layout.checkpoint}")


def _inputs(spec: RunSpec) -> tuple[PipelineFolder, tuple[Concept, ...], tuple[DatasetInfo, ...]]:
    """Model, subjects and their datasets, recognised; raises JobError with everything that is wrong with any."""
    problems: list[Problem] = []
    folder: PipelineFolder | None = None
    concepts: tuple[Concept, ...] = ()
    infos: list[DatasetInfo] = []
    try:
        folder = find_pipeline(
            Path(spec.pretrained_model_name_or_path),
            None,
            allow_pickle=spec.allow_pickle,
            prediction_type=spec.prediction_type,
            single_file_config=spec.single_file_config,
        )
        problems += fit.problems(folder)
    except JobError as error:
        problems += error.problems
    try:
        concepts = concepts_of(spec) if spec.recipe_facts.has_subjects else ()
        if spec.recipe_facts.has_subjects:
            infos = [_dataset(spec, concept.instance_data_dir) for concept in concepts]
        else:
            infos = [_dataset(spec, spec.train_data_dir)]
        problems += [problem for info in infos for problem in validation_split.problems(spec, info)]
    except JobError as error:
        problems += error.problems
    if problems or folder is None:
        raise JobError(problems)
    return folder, concepts, tuple(infos)


def _dataset(spec: RunSpec, path: str | None) -> DatasetInfo:
    if path is None:
        remedy = "Name the folder of the images with --train_data_dir."
        raise JobError(bad_setting("train_data_dir", "not given", remedy))
    return dataset_in(path, spec, captions=spec.recipe_facts.reads_captions)


def _prompts(spec: RunSpec, concepts: tuple[Concept, ...]) -> tuple[str, ...]:
    """The prompt of each subject's images, where there is a list of subjects."""
    return tuple(concept.instance_prompt for concept in concepts) if spec.concepts_list else ()


def _facts(
    spec: RunSpec,
    world: World,
    identity: str,
    infos: tuple[DatasetInfo, ...],
    concepts: tuple[Concept, ...],
) -> dict[str, str]:
    """What a resume compares, found by the first rank for all: it takes a look at every file. Collective. Raises
    JobError (66)."""
    facts: dict[str, str] = {}
    problems: tuple[Problem, ...] = ()
    if world.is_main:
        try:
            facts = fingerprint.facts_of(spec, identity, infos, concepts)
        except JobError as error:
            problems = error.problems
    world.agree(list(problems))
    found: dict[str, str] = world.gather(facts)[0]
    return found


def _resolved(spec: RunSpec, world: World, folder: PipelineFolder, num_examples: int) -> RunSpec:
    """The spec with `auto` and epochs turned into values; raises JobError if it cannot run here."""
    topology = devices.topology(world.kind, world.size)
    steps = spec.max_train_steps
    if spec.num_train_epochs and step_counts.by_epochs(spec):
        steps = step_counts.steps_of(spec.num_train_epochs, spec, num_examples, world.size)
    changes = {"device": world.kind.name, "max_train_steps": steps}
    spec = spec.model_copy(
        update={**changes, "mixed_precision": compatibility.resolve_precision(spec, topology)}
    )
    if problems := [*compatibility.problems(spec, topology), *compatibility.model_problems(spec, folder)]:
        raise JobError(problems)
    return spec


def _resume_point(
    spec: RunSpec, world: World, layout: OutputLayout, facts: dict[str, str]
) -> StepFolder | None:
    """The checkpoint that this run continues, if any; JobError if it is of another run. Collective.

    The first rank looks for all: so each byte is verified once, and they cannot come to different views.
    """
    start: StepFolder | None = None
    problems: tuple[Problem, ...] = ()
    if world.is_main:
        try:
            start = checkpoint.newest(layout, spec.resume)
            if start:
                made_by = checkpoint.read_state(start.path).fingerprint
                problems = tuple(fingerprint.differences(made_by, facts, start.path))
        except JobError as error:
            problems = error.problems
    world.agree(list(problems))
    found: StepFolder | None = world.gather(start)[0]
    return found


def _is_finished(spec: RunSpec, world: World, layout: OutputLayout, start: StepFolder) -> bool:
    """Whether nothing is left to do, as the first rank sees it: on other nodes a shared folder may lag behind.
    Collective."""
    return bool(world.gather(resume.is_finished(spec, layout, start))[0])


def _begin(spec: RunSpec, world: World, layout: OutputLayout, start: StepFolder | None) -> None:
    """Says where the run begins, and keeps what an earlier one left. Collective. Raises JobError (73)."""
    problems = []
    if world.is_main:
        try:
            layout.root.mkdir(parents=True, exist_ok=True)
            aside = None
            if start is None or checkpoint.begins_a_course(start, spec.resume):
                aside = checkpoint.move_aside(layout, start)
            layout.checkpoint.mkdir(exist_ok=True)
            exit_note.begin()
        except OSError as error:
            remedy = "Name a folder that can be written, or that can be made."
            problems = [bad_output("OUTPUT_DIR", f"cannot be written ({error})", remedy)]
        else:
            if aside:
                say(f"what an earlier run left in {layout.root} is kept in {aside}")
            say(f"resuming from {start.path}" if start else "starting from the beginning")
    world.agree(problems)


def _examples(caching: Caching, streams: tuple[Stream, ...]) -> StreamSet:
    """What is trained on, with the caches that were asked for. Collective. Raises JobError, Stopped."""
    spec = caching.spec
    buckets, encodings = None, None
    if spec.aspect_ratio_buckets:
        buckets, first = _buckets(caching, streams[0])
        streams = (first, *streams[1:])
    skips = spec.bad_samples == "skip" and spec.cache_latents != "no"
    if spec.cache_text_embeddings != "no" or skips:
        prompts, streams = every_prompt(caching, streams)
        encodings = cached_prompts(caching, prompts) if spec.cache_text_embeddings != "no" else None
    if spec.cache_latents != "no":
        streams = cached_latents(caching, streams, buckets)
    takes_sizes = architectures.of(caching.parts).takes_sizes
    return StreamSet(
        streams, spec.seed, spec.proportion_empty_prompts, encodings, buckets, takes_sizes=takes_sizes
    )


def _buckets(caching: Caching, stream: Stream) -> tuple[Buckets, Stream]:
    """The images of a stream by their shape, and the stream with those known whose shape cannot be read: they have
    that of the next one. Collective. Raises JobError (66), Stopped."""
    spec, world = caching.spec, caching.world
    found, stream = caching.survey(stream, "sizes", TrainingImages.size)
    sizes = filled(found)
    batch = step_counts.global_batch(spec, world.size)
    buckets = bucketed(sizes, spec.resolution, spec.bucket_reso_steps, spec.seed, stream.name, batch)
    if world.is_main:
        say(f"buckets: {buckets}")
    return buckets, stream


def _training(
    given: RecipeInput, denoiser: Denoiser, examples: StreamSet, held_out: HeldOut | None, tracking: Tracker
) -> Training:
    """Shards or wraps the trained parts, and puts everything together. Collective."""
    spec, world, parts = given.spec, given.world, given.parts
    strategy = strategies.create(spec, world.device, world.size)
    strategy.prepare(
        denoiser,
        OptimSpec(
            groups=_groups(spec, parts),
            betas=(spec.adam_beta1, spec.adam_beta2),
            weight_decay=spec.adam_weight_decay,
            epsilon=spec.adam_epsilon,
            max_grad_norm=spec.max_grad_norm,
            name=spec.optimizer,
        ),
    )
    shape = BatchShape(spec.train_batch_size, spec.gradient_accumulation_steps, world.size)
    ema = Ema(strategy.masters(), spec.ema_decay) if spec.use_ema else None
    return Training(
        spec,
        world,
        given.layout,
        shape,
        parts,
        examples,
        strategy,
        ema,
        tracking,
        given.stop,
        held_out,
    )


def _groups(spec: RunSpec, parts: Parts) -> tuple[ParameterGroup, ...]:
    unet = ParameterGroup(f"{UNET}.", spec.learning_rate)
    rate = spec.text_encoder_lr or spec.learning_rate
    encoders = parts.text_encoders if spec.train_text_encoder else ()
    return unet, *(ParameterGroup(f"{name}.", rate) for name in encoders)


def _say_attention(spec: RunSpec, world: World, parts: Parts) -> None:
    """What computes attention; a device that has to do without a fused kernel is slow, and nothing says so."""
    runs = attention.running(spec.attention, parts.unet, world.device, parts.dtype)
    say(f"attention: {runs}" + (f" ({spec.attention})" if spec.attention != runs else ""))
    if spec.attention in ("auto", "sdpa") and "math" in runs and world.kind.name != "cpu":
        say(f"warning: PyTorch has no fused attention for {parts.dtype} here; mixed_precision=bf16 may help")


def _warn_of_cut_prompts(spec: RunSpec, parts: Parts, streams: tuple[Stream, ...]) -> None:
    prompts = {stream.name: prompts_of(stream, limit=1000) for stream in streams}
    prompts["validation"] = list(spec.validation_prompts)
    for warning in tokenize.length_warnings(parts.tokenizer, prompts, spec.prompt_chunks):
        say(f"warning: {warning}")


def _what_begins(training: Training, state: TrainState) -> str:
    """What is about to happen: that all processes are there, and what the launcher could not know."""
    spec, world = training.spec, training.world
    first, last = state.step + 1, spec.max_train_steps
    steps = (
        f"steps {first} to {last}" if first < last else f"step {last}" if first == last else "no more steps"
    )
    return (
        f"training: {steps}, {training.shape.global_batch} a step of {counted(training.num_examples, 'image')}; "
        f"{world.size} × {world.kind.name}, precision {spec.mixed_precision}"
    )
