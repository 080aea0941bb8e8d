"""The training examples of a run: its streams, with aspect-ratio buckets and caches as set or chosen."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import partial

from sdjob.automatic import caching, example_sizes, machine
from sdjob.automatic.caching import Facts
from sdjob.model.pipeline import PipelineFolder
from sdjob.settings import steps
from sdtrain.architectures.base import Parts
from sdtrain.context import RunContext
from sdtrain.data.batch import random_inputs
from sdtrain.data.buckets import Buckets, bucketed
from sdtrain.data.cached_encodings import cached_latents, cached_prompts, every_prompt
from sdtrain.data.scan import filled, scan
from sdtrain.data.streams import Stream, StreamSet, prompts_of
from sdtrain.data.training_images import TrainingImages, crop_of
from sdtrain.runtime import devices


def prepare_examples(
    context: RunContext, model: PipelineFolder, parts: Parts, streams: tuple[Stream, ...]
) -> StreamSet:
    """The training examples, with buckets and caches; parts that caches replace leave the device. Collective.
    Raises JobError, Stopped."""
    if context.world.is_main:
        _warn_of_cut_prompts(context, parts, streams)
    buckets, encodings = None, None
    if context.spec.aspect_ratio_buckets:
        buckets, first = _buckets(context, streams[0])
        streams = (first, *streams[1:])
    context, streams = _with_caches(context, model, streams, buckets)
    spec = context.spec
    skips = spec.bad_samples == "skip" and spec.cache_latents != "no"
    if spec.cache_text_embeddings != "no" or skips:
        prompts, streams = every_prompt(context, streams)
        encodings = cached_prompts(context, parts, prompts) if spec.cache_text_embeddings != "no" else None
    if spec.cache_latents != "no":
        streams = cached_latents(context, parts, streams, buckets)
    unused = [parts.vae] if spec.cache_latents != "no" else []
    unused += parts.text_encoders.values() if encodings else ()
    for module in unused:
        module.to("cpu")  # it returns while images are generated or held-out ones encoded
    return StreamSet(
        streams,
        spec.seed,
        spec.proportion_empty_prompts,
        encodings,
        buckets,
        takes_sizes=parts.architecture.takes_sizes,
        random=random_inputs(parts, spec),
        tokenize=partial(parts.token_ids, chunks=spec.prompt_chunks),
    )


def _with_caches(
    context: RunContext, model: PipelineFolder, streams: tuple[Stream, ...], buckets: Buckets | None
) -> tuple[RunContext, tuple[Stream, ...]]:
    """The settings of caches, chosen where they are `auto`, and the streams with unreadable images marked. Collective.
    Raises JobError (66), Stopped."""
    spec, world = context.spec, context.world
    automatic = [name for name in caching.SETTINGS if getattr(spec, name) == "auto"]
    if not automatic:
        return context, streams
    topology = devices.topology(world.device_type, world.size)
    images = len(streams[0].images)
    facts = world.from_main(lambda: _facts(context))
    of_prompts = caching.prompts(spec, example_sizes.prompts(spec, model, images, topology), facts)
    entries = example_sizes.latents(spec, model, images, topology)
    of_latents = caching.latents(spec, entries, facts)
    if of_latents.value == "auto":
        fixed, streams = _crops_are_fixed(context, streams, buckets)
        of_latents = caching.latents(spec, entries, replace(facts, fixed_crops=fixed))
    chosen = dict(zip(caching.SETTINGS, (of_latents, of_prompts), strict=True))
    for name in automatic:
        world.say(f"{name}={chosen[name].value} (auto: {chosen[name].reason})")
    spec = spec.model_copy(update={name: chosen[name].value for name in automatic})
    return replace(context, spec=spec), streams


def _facts(context: RunContext) -> Facts:
    spec, world = context.spec, context.world
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    folder = context.layout.cache(spec.cache_dir)
    shared = processes == world.size or not spec.cache_dir
    existing = next((each for each in (folder, *folder.parents) if each.exists()), None)
    free = shutil.disk_usage(existing).free if shared and existing else None
    return Facts(world.size, processes, machine.host_memory(), free)


def _crops_are_fixed(
    context: RunContext, streams: tuple[Stream, ...], buckets: Buckets | None
) -> tuple[bool, tuple[Stream, ...]]:
    """Whether every image has the proportions of what is trained on, so that no crop has a choice; and the streams
    with unreadable images marked. With buckets, crops are random. Collective. Raises JobError (66), Stopped."""
    if buckets is not None:
        return False, streams
    fixed, scanned = True, []
    for given in streams:
        originals, stream = scan(context, given, "sizes", TrainingImages.size)
        square = stream.images.square
        fixed &= all(crop_of(original, square, None)[0] == square for original in originals if original)
        scanned.append(stream)
    return fixed, tuple(scanned)


def _warn_of_cut_prompts(context: RunContext, parts: Parts, streams: tuple[Stream, ...]) -> None:
    spec = context.spec
    prompts = {stream.name: prompts_of(stream, limit=1000) for stream in streams}
    prompts["validation"] = list(spec.validation_prompts)
    for warning in parts.architecture.length_warnings(parts.tokenizers, prompts, spec.prompt_chunks):
        context.world.say(f"warning: {warning}")


def _buckets(context: RunContext, stream: Stream) -> tuple[Buckets, Stream]:
    """The aspect-ratio buckets of a stream, and the stream with its unreadable images marked, which take the
    size of the next one. Collective. Raises JobError (66), Stopped."""
    spec, world = context.spec, context.world
    sizes, stream = scan(context, stream, "sizes", TrainingImages.size)
    batch = steps.global_batch(spec, world.size)
    buckets = bucketed(filled(sizes), spec.resolution, spec.bucket_reso_steps, spec.seed, stream.name, batch)
    world.say(f"buckets: {buckets}")
    return buckets, stream
