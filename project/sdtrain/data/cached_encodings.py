"""What can be computed once instead of in every step: the VAE's moments of an image, the encoding of a prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from sdjob.output.layout import OutputLayout
from sdjob.problems import Problem
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Conditioning, Parts
from sdtrain.data.buckets import Buckets
from sdtrain.data.cache import Cache, DiskCache, Entry, MemoryCache, fill
from sdtrain.data.images import SampleError, TrainingImages, View
from sdtrain.data.sampling import Sample
from sdtrain.data.scan import say_passed_over, survey
from sdtrain.data.streams import Stream, ended_by_parent_only
from sdtrain.runtime.distributed import World
from sdtrain.runtime.stop import StopRequest

Value = TypeVar("Value")


@dataclass(frozen=True)
class Caching:
    """What is needed to make a cache."""

    spec: RunSpec
    world: World
    layout: OutputLayout
    parts: Parts
    stop: StopRequest
    step: int  # where the run is when it is asked to stop meanwhile

    def cache(self, where: str, name: str) -> Cache:
        if where == "memory":
            return MemoryCache()
        return DiskCache((Path(self.spec.cache_dir) if self.spec.cache_dir else self.layout.cache) / name)

    def fill(
        self,
        cache: Cache,
        title: str,
        keys: Sequence[str],
        make: Callable[[list[int]], Iterator[Entry | Problem]],
    ) -> dict[str, Problem]:
        return fill(cache, title, keys, make, self.world, self.stop, self.step)

    def survey(
        self, stream: Stream, title: str, look: Callable[[TrainingImages, int], Value]
    ) -> tuple[list[Value | None], Stream]:
        """What is found at each image of a stream, and the stream with those known that cannot be used. Collective.
        Raises JobError (66), Stopped."""
        found, images = survey(
            images_of(stream),
            f"{title} of the {stream.name} images",
            look,
            self.world,
            self.stop,
            self.step,
        )
        return found, replace(stream, images=images)


@dataclass(frozen=True)
class CachedImages(Dataset[dict[str, Any]]):
    """Training examples whose images are encoded already: `moments` in place of `pixel_values`."""

    images: TrainingImages
    keys: dict[View, str]
    cache: Cache

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        """`moments` [2C, h, w] (mean, logvar), `caption`, `name`, `sample`, `passed_over`."""
        return self.images.first_usable(sample, self._example)

    def _example(self, sample: Sample) -> dict[str, Any]:
        return {**self.cache[self.keys[self.images.view(sample)]], **self.images.about(sample)}

    def captions(self, limit: int) -> Iterator[str]:
        return self.images.captions(limit)

    def time_ids(self, sample: Sample) -> torch.Tensor:
        return self.images.time_ids(sample)

    @property
    def bad(self) -> Mapping[int, Problem]:
        return self.images.bad


@dataclass(frozen=True)
class CachedPrompts:
    """The encodings of all prompts of a run."""

    keys: dict[str, str]
    cache: Cache

    def __getitem__(self, prompt: str) -> Conditioning:
        """What the network is told of a prompt, without the dimension of a batch."""
        return self.cache[self.keys[prompt]]


def cached_latents(
    caching: Caching, streams: tuple[Stream, ...], buckets: Buckets | None
) -> tuple[Stream, ...]:
    """The streams with encoded images, each view of an image encoded once. Collective.

    The key of an entry is all that it depends on: the image's bytes, how it is resized, cropped and mirrored,
    and the VAE. An edited image, another VAE or another resolution is therefore another entry.

    An image that cannot be used has none; where another one stands in for it, that one has an entry of its size too.
    """
    spec = caching.spec
    cache = caching.cache(spec.cache_latents, "latents")
    about = [_identity(caching.parts.vae, caching.world), spec.image_interpolation_mode, "centre crop"]
    cached = []
    for number, given in enumerate(streams):
        digests, stream = caching.survey(given, "hashes", TrainingImages.digest)
        images = images_of(stream)
        sizes = None if buckets is None else buckets.of if number == 0 else buckets.every
        keys: dict[View, str] = {}
        while views := [view for view in dict.fromkeys(images.views(sizes)) if view not in keys]:
            new = [_key("moments", *about, digests[view.index], *view.size, view.flip) for view in views]

            def make(
                places: list[int], views: list[View] = views, images: TrainingImages = images
            ) -> Iterator[Entry | Problem]:
                return _moments(caching.parts, images, [views[place] for place in places], spec)

            failed = caching.fill(cache, f"latents of the {stream.name} images", new, make)
            bad = {
                view.index: replace(failed[key], subject=images.source.name(view.index))
                for view, key in zip(views, new, strict=True)
                if key in failed  # of two images with the same bytes only one was tried
            }
            keys |= zip(views, new, strict=True)
            if not bad:
                break
            images = images.without(bad)
            say_passed_over(bad, caching.world)
        cached.append(replace(stream, images=CachedImages(images, keys, cache)))
    return tuple(cached)


def every_prompt(caching: Caching, streams: tuple[Stream, ...]) -> tuple[set[str], tuple[Stream, ...]]:
    """All prompts that the streams can give, and the streams with the images known whose captions cannot be read.
    Collective. Raises JobError (66), Stopped."""
    prompts = {""} if caching.spec.proportion_empty_prompts else set()
    looked_through = []
    for given in streams:
        if given.prompt is not None:
            prompts.add(given.prompt)
            looked_through.append(given)
            continue
        captions, stream = caching.survey(given, "captions", TrainingImages.caption)
        prompts |= {caption for caption in captions if caption is not None}
        looked_through.append(stream)
    return prompts, tuple(looked_through)


def images_of(stream: Stream) -> TrainingImages:
    assert isinstance(stream.images, TrainingImages)
    return stream.images


def cached_prompts(caching: Caching, prompts: Collection[str]) -> CachedPrompts:
    """The encodings of these prompts. Collective."""
    parts, spec = caching.parts, caching.spec
    cache = caching.cache(spec.cache_text_embeddings, "prompts")
    every = sorted(prompts)
    encoders = [_identity(encoder, caching.world) for encoder in parts.text_encoders.values()]
    tokens = parts.token_ids(every, spec.prompt_chunks)

    def key(place: int) -> str:
        ids = {name: of_encoder[place].tolist() for name, of_encoder in tokens.items()}
        return _key("encodings", parts.architecture.facts.class_name, encoders, ids)

    def make(places: list[int]) -> Iterator[Entry]:
        for place in places:
            alone = {name: of_encoder[place : place + 1] for name, of_encoder in tokens.items()}
            with torch.no_grad():
                yield {name: tensor[0] for name, tensor in parts.encode(alone).items()}

    keys = [key(place) for place in range(len(every))]

    caching.fill(cache, "prompts", keys, make)
    return CachedPrompts(dict(zip(every, keys, strict=True)), cache)


@dataclass(frozen=True)
class _Views(Dataset[torch.Tensor | Problem]):
    """Pixels of views, to be loaded by other processes; or, where others may stand in, why there are none."""

    images: TrainingImages
    views: list[View]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, place: int) -> torch.Tensor | Problem:
        try:
            return self.images.pixels(self.views[place])
        except SampleError as error:
            if not self.images.max_bad_samples:
                raise
            return error.problems[0]


def _moments(
    parts: Parts, images: TrainingImages, views: list[View], spec: RunSpec
) -> Iterator[Entry | Problem]:
    """`moments`: mean and logvar of the VAE's posterior, [2C, h, w]; one image at a time, so that they are the same
    on any number of ranks."""
    workers = min(spec.dataloader_num_workers, len(views))
    loader: DataLoader[torch.Tensor | Problem] = DataLoader(
        _Views(images, views), batch_size=None, num_workers=workers, worker_init_fn=ended_by_parent_only
    )
    bad: dict[int, Problem] = {}
    for view, pixel_values in zip(views, loader, strict=True):
        if isinstance(pixel_values, Problem):
            bad[view.index] = pixel_values
            images.without(bad)  # raises at once where they are too many
            yield pixel_values
            continue
        with torch.no_grad():
            posterior = parts.posterior(pixel_values[None])
        yield {"moments": posterior.parameters[0]}


def _identity(module: nn.Module, world: World) -> str:
    """A hash of a module's weights as they are in memory, and of its configuration. Collective."""
    if not world.is_main:
        return str(world.gather("")[0])
    digest = hashlib.blake2b(digest_size=16)
    config: Any = module.config
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {name: value for name, value in values.items() if not name.startswith("_")}
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name}/{weight.dtype}/{tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return str(world.gather(digest.hexdigest())[0])


def _key(*about: Any) -> str:
    return hashlib.blake2b(json.dumps(about).encode(), digest_size=20).hexdigest()
