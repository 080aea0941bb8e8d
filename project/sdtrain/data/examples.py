"""The training examples of a run: its streams, with aspect-ratio buckets and caches as set."""

from __future__ import annotations

from sdjob.settings import steps
from sdtrain.data.buckets import Buckets, bucketed
from sdtrain.data.cached_encodings import Caching, cached_latents, cached_prompts, every_prompt
from sdtrain.data.images import TrainingImages
from sdtrain.data.scan import filled
from sdtrain.data.streams import Stream, StreamSet, prompts_of
from sdtrain.reporting.progress import say


def prepare_examples(caching: Caching, streams: tuple[Stream, ...]) -> StreamSet:
    """The training examples, with buckets and caches as set. Collective. Raises JobError, Stopped."""
    spec = caching.spec
    if caching.world.is_main:
        _warn_of_cut_prompts(caching, streams)
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
    takes_sizes = caching.parts.architecture.takes_sizes
    return StreamSet(
        streams, spec.seed, spec.proportion_empty_prompts, encodings, buckets, takes_sizes=takes_sizes
    )


def _warn_of_cut_prompts(caching: Caching, streams: tuple[Stream, ...]) -> None:
    spec = caching.spec
    prompts = {stream.name: prompts_of(stream, limit=1000) for stream in streams}
    prompts["validation"] = list(spec.validation_prompts)
    for warning in caching.parts.architecture.length_warnings(
        caching.parts.tokenizers, prompts, spec.prompt_chunks
    ):
        say(f"warning: {warning}")


def _buckets(caching: Caching, stream: Stream) -> tuple[Buckets, Stream]:
    """The aspect-ratio buckets of a stream, and the stream with its unreadable images marked, which take the
    size of the next one. Collective. Raises JobError (66), Stopped."""
    spec, world = caching.spec, caching.world
    sizes, stream = caching.scan(stream, "sizes", TrainingImages.size)
    batch = steps.global_batch(spec, world.size)
    buckets = bucketed(filled(sizes), spec.resolution, spec.bucket_reso_steps, spec.seed, stream.name, batch)
    if world.is_main:
        say(f"buckets: {buckets}")
    return buckets, stream
