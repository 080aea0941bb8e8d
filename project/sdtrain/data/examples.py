"""The training examples of a run: its streams, with aspect-ratio buckets and caches as set."""

from __future__ import annotations

from functools import partial

from sdjob.settings import steps
from sdtrain.architectures.base import Parts
from sdtrain.context import RunContext
from sdtrain.data.batch import random_inputs
from sdtrain.data.buckets import Buckets, bucketed
from sdtrain.data.cached_encodings import cached_latents, cached_prompts, every_prompt
from sdtrain.data.scan import filled, scan
from sdtrain.data.streams import Stream, StreamSet, prompts_of
from sdtrain.data.training_images import TrainingImages


def prepare_examples(context: RunContext, parts: Parts, streams: tuple[Stream, ...]) -> StreamSet:
    """The training examples, with buckets and caches as set. Collective. Raises JobError, Stopped."""
    spec = context.spec
    if context.world.is_main:
        _warn_of_cut_prompts(context, parts, streams)
    buckets, encodings = None, None
    if spec.aspect_ratio_buckets:
        buckets, first = _buckets(context, streams[0])
        streams = (first, *streams[1:])
    skips = spec.bad_samples == "skip" and spec.cache_latents != "no"
    if spec.cache_text_embeddings != "no" or skips:
        prompts, streams = every_prompt(context, streams)
        encodings = cached_prompts(context, parts, prompts) if spec.cache_text_embeddings != "no" else None
    if spec.cache_latents != "no":
        streams = cached_latents(context, parts, streams, buckets)
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
