"""Caches of what is the same in every step: the latent posteriors of images, the encodings of prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader

from sdjob.model.vae import encoded_at_once
from sdjob.problems import Problem
from sdtrain.architectures.base import Parts
from sdtrain.context import RunContext
from sdtrain.data.buckets import Buckets
from sdtrain.data.cache import Cache, Cached, DiskCache, Made, MemoryCache, Shapes, fill
from sdtrain.data.loader import ended_by_parent_only
from sdtrain.data.sampling import Size
from sdtrain.data.scan import report_skipped, scan
from sdtrain.data.streams import Stream
from sdtrain.data.training_images import SampleError, TrainingImages, View
from sdtrain.runtime.distributed import World

_DECODING = "3"  # raised when the same bytes become other entries
_PROMPTS = 8  # encoded at once
Item = TypeVar("Item")
Sizes = Callable[[int], Sequence[Size]]  # of an image, by index


def _cache(context: RunContext, where: str, name: str) -> Cache:
    if where == "memory":
        return MemoryCache()
    return DiskCache(context.layout.cache(context.spec.cache_dir) / name)


def cached_latents(
    context: RunContext, parts: Parts, streams: tuple[Stream, ...], buckets: Buckets | None
) -> tuple[Stream, ...]:
    """The streams with encoded images, each view of an image encoded once. Collective."""
    cache = _cache(context, context.spec.cache_latents, "latents")
    if buckets is None:
        sizes: list[Sizes | None] = [None] * len(streams)
    else:
        sizes = [buckets.of, *[buckets.every] * (len(streams) - 1)]
    return tuple(
        _with_latents(context, parts, stream, of_stream, cache)
        for stream, of_stream in zip(streams, sizes, strict=True)
    )


def _with_latents(
    context: RunContext, parts: Parts, stream: Stream, sizes: Sizes | None, cache: Cache
) -> Stream:
    """A stream with encoded images. An unusable image has no entry; its replacement has one of its size too."""
    key, stream = _key_of_view(context, parts, stream)
    images = stream.images
    keys: dict[View, str] = {}
    while views := [view for view in dict.fromkeys(images.views(sizes)) if view not in keys]:
        new = {view: key(view) for view in views}
        made_of = {of: view for view, of in new.items()}
        make = partial(_posteriors, context, parts, images, made_of)
        shapes_of = partial(_posterior_shapes, parts, made_of)
        title = f"latents of the {stream.name} images"
        failed = fill(context, cache, title, [*new.values()], make, shapes_of)
        keys |= new
        bad = {
            view.index: replace(failed[keys[view]], subject=images.source[view.index].name())
            for view in views
            if keys[view] in failed  # of two images with the same bytes only one was tried
        }
        images = images.without(bad)  # whose replacements may need other views
        report_skipped(bad, context.world)
    return replace(stream, images=replace(images, latents=Cached(keys, cache)))


def _key_of_view(context: RunContext, parts: Parts, stream: Stream) -> tuple[Callable[[View], str], Stream]:
    """The key of an entry by its view, and the stream without the images that this could not read. Collective.

    On disk it is a hash of all that the entry depends on: the image's bytes, how it is resized, cropped and mirrored,
    and the VAE. An edited image, another VAE or another resolution is therefore another entry.
    """
    if context.spec.cache_latents == "memory":
        return lambda view: f"{stream.name}/{view}", stream
    digests, stream = scan(context, stream, "hashes", TrainingImages.digest)
    vae = _identity(parts.vae, context.world)
    common = ["posterior", vae, context.spec.image_interpolation_mode, "center crop", _DECODING]
    return lambda view: _hashed(*common, digests[view.index], *view.size, view.flip), stream


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
    spec, every = context.spec, sorted(prompts)
    cache = _cache(context, spec.cache_text_embeddings, "prompts")
    keys = dict(zip(every, every, strict=True))
    if spec.cache_text_embeddings == "disk":
        encoders = [_identity(encoder, context.world) for encoder in parts.text_encoders.values()]
        common = ["encodings", _DECODING, parts.architecture.facts.class_name, encoders]
        tokens = parts.token_ids(every, spec.prompt_chunks)
        for index, prompt in enumerate(every):
            ids = {name: of_encoder[index].tolist() for name, of_encoder in tokens.items()}
            keys[prompt] = _hashed(*common, ids)
    prompt_of = {key: prompt for prompt, key in keys.items()}

    def make(wanted: list[str]) -> Iterator[Made]:
        for batch in _cut(wanted, _PROMPTS):
            tokens = parts.token_ids([prompt_of[key] for key in batch], spec.prompt_chunks)
            with torch.no_grad():
                encoded = parts.encode({name: _padded(ids, _PROMPTS) for name, ids in tokens.items()})
            on_host = {name: tensor.cpu() for name, tensor in encoded.items()}
            for index, key in enumerate(batch):
                yield key, {name: tensor[index].clone() for name, tensor in on_host.items()}

    @lru_cache(1)
    def shapes() -> Shapes:
        _, entry = next(make([next(iter(prompt_of))]))
        assert not isinstance(entry, Problem)
        return {name: tuple(tensor.shape) for name, tensor in entry.items()}

    fill(context, cache, "prompts", [*keys.values()], make, lambda _: shapes())
    return Cached(keys, cache)


def _posterior_shapes(parts: Parts, views: dict[str, View], key: str) -> Shapes:
    width, height = views[key].size
    factor = parts.latent_factor
    return {"posterior": (2 * int(parts.vae.config.latent_channels), height // factor, width // factor)}


def _posteriors(
    context: RunContext, parts: Parts, images: TrainingImages, views: dict[str, View], keys: list[str]
) -> Iterator[Made]:
    """`posterior`: mean and logvar of an image's latents, [2C, h, w]."""

    def size(key: str) -> Size:
        return views[key].size

    batches = [
        batch
        for of_size, same in groupby(sorted(keys, key=size), key=size)
        for batch in _cut(list(same), encoded_at_once(*of_size))
    ]
    loader: DataLoader[Any] = DataLoader(
        [[views[key] for key in batch] for batch in batches],  # type: ignore[arg-type]  # any sequence will do
        batch_size=None,
        collate_fn=partial(_pixels, images),
        num_workers=min(context.spec.dataloader_num_workers, len(batches)),
        worker_init_fn=ended_by_parent_only,
    )
    bad: dict[int, Problem] = {}
    for batch, results in zip(batches, loader, strict=True):
        good: dict[str, torch.Tensor] = {}
        for key, result in zip(batch, results, strict=True):
            if isinstance(result, Problem):
                bad[views[key].index] = result
                images.without(bad)  # raises at once if there are too many
                yield key, result
            else:
                good[key] = result
        if good:
            pixels = torch.stack(list(good.values()))
            with torch.no_grad():
                count = encoded_at_once(*pixels.shape[2:])
                on_host = parts.posterior(_padded(pixels, count)).parameters.cpu()
            for index, key in enumerate(good):
                yield key, {"posterior": on_host[index].clone()}


def _pixels(images: TrainingImages, views: Sequence[View]) -> list[torch.Tensor | Problem]:
    """The pixels of views; or, where an image may be skipped, why there are none."""
    results: list[torch.Tensor | Problem] = []
    for view in views:
        try:
            results.append(images.pixels(view))
        except SampleError as error:
            if not images.max_bad_samples:
                raise
            results.append(error.problems[0])
    return results


def _padded(batch: torch.Tensor, count: int) -> torch.Tensor:
    """A batch of always the same shape, by which rounding depends on neither the number of entries to be made nor the
    ranks that make them."""
    missing = count - len(batch)
    return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing > 0 else batch


def _cut(items: list[Item], size: int) -> list[list[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


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


def _hashed(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=20).hexdigest()
