"""Bytes of what is computed once for an image or a prompt and kept, and of a batch on its way from the loader. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sdjob.formatting import counted, in_units
from sdjob.settings import compatibility, steps
from sdjob.settings.compatibility import Topology
from sdjob.settings.run_spec import RunSpec

_FP32 = 4
_HEADER = 192  # bytes of an entry in the header of its file, about
_WHERE = {"disk": "on disk", "memory": "in the memory of each process"}


class Model(Protocol):
    """What this has to know of a pipeline: a sdjob.model.pipeline.PipelineFolder."""

    @property
    def parts(self) -> Mapping[str, Any]: ...

    @property
    def denoiser(self) -> Any: ...

    @property
    def architecture(self) -> Any: ...

    @property
    def latent_factor(self) -> int: ...


@dataclass(frozen=True)
class CacheEntries:
    """The entries of one cache: how many there will be, at least and at most, and the bytes of each."""

    setting: str
    name: str
    where: str  # the value of the setting
    least: int
    most: int
    each: int

    @property
    def size(self) -> int:
        """Bytes of one entry where it is kept."""
        return self.each + (_HEADER if self.where == "disk" else 0)

    @property
    def total(self) -> int:
        """Bytes of all entries, at most."""
        return self.most * self.size

    def __str__(self) -> str:
        """200 latents × 131 kB = 26.2 MB on disk"""
        entries = ("up to " if self.most > self.least else "") + counted(
            self.most, self.name.removesuffix("s")
        )
        return f"{entries} × {in_units(self.size)} = {in_units(self.total)} {_WHERE[self.where]}"


def cache_entries(spec: RunSpec, model: Model, images: int, topology: Topology) -> Iterator[CacheEntries]:
    """The caches that are switched on, for so many training images."""
    every = (latents(spec, model, images, topology), prompts(spec, model, images, topology))
    yield from (entries for entries in every if entries.where in _WHERE)


def latents(spec: RunSpec, model: Model, images: int, topology: Topology) -> CacheEntries:
    """The posteriors of all images, and of their mirrored ones."""
    of_class = spec.num_class_images if spec.with_prior_preservation else 0
    count = (images + of_class) * (2 if spec.random_flip else 1)
    number = _FP32 if model.architecture.vae_in_fp32 else compatibility.width(spec, topology)
    each = number * _posterior(spec, model)
    return CacheEntries("cache_latents", "latents", spec.cache_latents, count, count, each)


def prompts(spec: RunSpec, model: Model, images: int, topology: Topology) -> CacheEntries:
    """The encodings of all prompts; of captions, some may be equal."""
    least = 1 + spec.with_prior_preservation
    most = images if spec.recipe_facts.reads_captions else least
    empty = bool(spec.proportion_empty_prompts)
    each = compatibility.width(spec, topology) * _conditioning(spec, model)
    where = spec.cache_text_embeddings
    return CacheEntries("cache_text_embeddings", "prompts", where, least + empty, most + empty, each)


def batch(spec: RunSpec, model: Model | None, topology: Topology) -> int:
    """Bytes of a batch as a loader process gives it: images, or what is cached of them, prompts and noise."""
    images = steps.images_of_batch(spec)
    pixels = 3 * spec.resolution**2  # of one byte
    if model is None:
        return images * pixels
    noise = _FP32 * _posterior(spec, model)  # for the latents, and for their noise
    noise += noise // 2 if spec.input_perturbation else 0
    if spec.cache_latents in _WHERE:
        pixels = latents(spec, model, 1, topology).each
    text = prompts(spec, model, 1, topology).each if spec.cache_text_embeddings in _WHERE else 0
    return images * (pixels + noise + text)


def _posterior(spec: RunSpec, model: Model) -> int:
    """Numbers of the latent posterior (mean and logvar) of an image: at least, since a bucket may have fewer pixels
    than the square, by a row of steps along its longer side."""
    side = spec.resolution
    pixels = side**2 - (2 * side * spec.bucket_reso_steps if spec.aspect_ratio_buckets else 0)
    channels = int(model.parts["vae"].config.get("latent_channels", 4))
    return 2 * channels * max(0, pixels) // model.latent_factor**2


def _conditioning(spec: RunSpec, model: Model) -> int:
    """Numbers of the conditioning of a prompt."""
    tokens = spec.prompt_chunks * int(model.parts["text_encoder"].config.get("max_position_embeddings", 77))
    pooled = sum(int(model.parts[name].config.get("projection_dim", 0)) for name in model.architecture.pooled)
    width, default = model.architecture.conditioning_width
    return tokens * int(model.denoiser.config.get(width, default)) + pooled
