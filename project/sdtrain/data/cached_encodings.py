"""Caches of what is the same in every step: the latent posteriors of images, the encodings of prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader

from sdjob.problems import Problem
from sdtrain.architectures.base import Parts
from sdtrain.context import RunContext
from sdtrain.data.buckets import Buckets
from sdtrain.data.cache import Cache, Cached, DiskCache, Entry, MemoryCache, fill
from sdtrain.data.loader import ended_by_parent_only
from sdtrain.data.sampling import Size
from sdtrain.data.scan import report_skipped, scan
from sdtrain.data.streams import Stream
from sdtrain.data.training_images import SampleError, TrainingImages, View
from sdtrain.runtime.distributed import World

_DECODING = "2"  # raised when the same bytes become other pixels
Value = TypeVar("Value")
Sizes = Callable[[int], Sequence[Size]]  # of an image, by index


def _cache(context: RunContext, where: str, name: str) -> Cache:
    if where == "memory":
        return MemoryCache()
    return DiskCache(context.layout.cache(context.spec.cache_dir) / name)


def cached_latents(
    context: RunContext, parts: Parts, streams: tuple[Stream, ...], buckets: Buckets | None
) -> tuple[Stream, ...]:
    """The streams with encoded images, each view of an image encoded once. Collective.

    The key of an entry is all that it depends on: the image's bytes, how it is resized, cropped and mirrored,
    and the VAE. An edited image, another VAE or another resolution is therefore another entry.
    """
    spec = context.spec
    cache = _cache(context, spec.cache_latents, "latents")
    common = [_identity(parts.vae, context.world), spec.image_interpolation_mode, "center crop", _DECODING]
    if buckets is None:
        sizes: list[Sizes | None] = [None] * len(streams)
    else:
        sizes = [buckets.of, *[buckets.every] * (len(streams) - 1)]
    return tuple(
        _with_latents(context, parts, stream, of_stream, cache, common)
        for stream, of_stream in zip(streams, sizes, strict=True)
    )


def _with_latents(
    context: RunContext,
    parts: Parts,
    stream: Stream,
    sizes: Sizes | None,
    cache: Cache,
    common: list[str],
) -> Stream:
    """A stream with encoded images. An unusable image has no entry; its replacement has one of its size too."""
    digests, stream = scan(context, stream, "hashes", TrainingImages.digest)
    images = stream.images
    keys: dict[View, str] = {}
    while views := [view for view in dict.fromkeys(images.views(sizes)) if view not in keys]:
        new = [_key("posterior", *common, digests[view.index], *view.size, view.flip) for view in views]
        make = partial(_posteriors, context, parts, images, views)
        failed = fill(context, cache, f"latents of the {stream.name} images", new, make)
        keys |= zip(views, new, strict=True)
        bad = {
            view.index: replace(failed[keys[view]], subject=images.source[view.index].name())
            for view in views
            if keys[view] in failed  # of two images with the same bytes only one was tried
        }
        images = images.without(bad)  # whose replacements may need other views
        report_skipped(bad, context.world)
    return replace(stream, images=replace(images, latents=Cached(keys, cache)))


def every_prompt(context: RunContext, streams: tuple[Stream, ...]) -> tuple[set[str], tuple[Stream, ...]]:
    """All prompts of the streams, and the streams with the images marked whose captions cannot be read. Collective.
    Raises JobError (66), Stopped."""
    prompts = {""} if context.spec.proportion_empty_prompts else set()
    scanned = []
    for given in streams:
        captions: list[str | None] = [given.prompt]
        stream = given
        if given.prompt is None:
            captions, stream = scan(context, given, "captions", TrainingImages.caption)
        prompts |= {caption for caption in captions if caption is not None}
        scanned.append(stream)
    return prompts, tuple(scanned)


def cached_prompts(context: RunContext, parts: Parts, prompts: Collection[str]) -> Cached[str]:
    """The encodings of these prompts. Collective."""
    spec = context.spec
    cache = _cache(context, spec.cache_text_embeddings, "prompts")
    every = sorted(prompts)
    encoders = [_identity(encoder, context.world) for encoder in parts.text_encoders.values()]
    tokens = parts.token_ids(every, spec.prompt_chunks)

    def key(index: int) -> str:
        ids = {name: of_encoder[index].tolist() for name, of_encoder in tokens.items()}
        return _key("encodings", parts.architecture.facts.class_name, encoders, ids)

    def make(indices: list[int]) -> Iterator[Entry]:
        for index in indices:
            alone = {name: of_encoder[index : index + 1] for name, of_encoder in tokens.items()}
            with torch.no_grad():
                encodings = parts.encode(alone)
            yield {name: tensor[0] for name, tensor in encodings.items()}

    keys = [key(index) for index in range(len(every))]
    fill(context, cache, "prompts", keys, make)
    return Cached(dict(zip(every, keys, strict=True)), cache)


def _pixels(images: TrainingImages, view: View) -> torch.Tensor | Problem:
    """The pixels of a view; or, where an image may be skipped, why there are none."""
    try:
        return images.pixels(view)
    except SampleError as error:
        if not images.max_bad_samples:
            raise
        return error.problems[0]


def _posteriors(
    context: RunContext, parts: Parts, images: TrainingImages, every: Sequence[View], indices: list[int]
) -> Iterator[Entry | Problem]:
    """`posterior`: mean and logvar of an image's latents, [2C, h, w]; one image at a time, so that they are the same
    on any number of ranks."""
    views = [every[index] for index in indices]
    loader: DataLoader[Any] = DataLoader(
        views,  # type: ignore[arg-type]  # any sequence will do
        batch_size=None,
        collate_fn=partial(_pixels, images),
        num_workers=min(context.spec.dataloader_num_workers, len(views)),
        worker_init_fn=ended_by_parent_only,
    )
    bad: dict[int, Problem] = {}
    for view, pixel_values in zip(views, loader, strict=True):
        if isinstance(pixel_values, Problem):
            bad[view.index] = pixel_values
            images.without(bad)  # raises at once if there are too many
            yield pixel_values
            continue
        with torch.no_grad():
            posterior = parts.posterior(pixel_values[None])
        yield {"posterior": posterior.parameters[0]}


def _identity(module: nn.Module, world: World) -> str:
    """A hash of a module's weights as they are in memory, and of its configuration. Collective."""
    return world.from_main(partial(_hash, module))


def _hash(module: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    config: Any = module.config
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {name: value for name, value in values.items() if not name.startswith("_")}
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name}/{weight.dtype}/{tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _key(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=20).hexdigest()
