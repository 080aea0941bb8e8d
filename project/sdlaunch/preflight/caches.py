"""How many bytes the caches of a job take, on disk or in memory: from the settings and the model's configs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdjob.dataset import validation_split
from sdjob.formatting import in_units
from sdjob.model import fit
from sdjob.model.pipeline import PipelineFolder
from sdjob.output.layout import OutputLayout
from sdjob.settings import compatibility
from sdjob.settings.choices import Caching
from sdjob.settings.compatibility import Topology
from sdjob.settings.run_spec import RunSpec
from sdlaunch.preflight.job import Job

_BLOCK = 4096  # bytes that a file takes at least, and that all files are a multiple of
_HEADER = 128  # of a safetensors file with one or two tensors, about
_PLACES = {"disk": "on disk", "memory": "in the memory of each process"}


@dataclass(frozen=True)
class Entries:
    """The entries of one cache: how many there will be, at least and at most, and the bytes of each."""

    name: str
    where: Caching
    least: int
    most: int
    each: int

    @property
    def setting(self) -> str:
        """The one that asked for them."""
        return "cache_latents" if self.name == "latents" else "cache_text_embeddings"

    @property
    def size(self) -> int:
        """Bytes of one entry where it is kept."""
        return -(-(self.each + _HEADER) // _BLOCK) * _BLOCK if self.where == "disk" else self.each

    def __str__(self) -> str:
        """200 latents × 131 kB = 26.2 MB on disk"""
        upper = f"up to {self.most:,}" if self.most > self.least else f"{self.most:,}"
        total = in_units(self.most * self.size)
        return f"{upper} {self.name} × {in_units(self.size)} = {total} {_PLACES[self.where]}"


def of(job: Job) -> list[Entries]:
    """The caches of a job, as far as its model and its dataset are known."""
    model, data = job.contents.model, job.contents.dataset
    if model is None or data is None or job.has_script:
        return []
    return entries(job.spec, model, data.num_examples, job.topology)


def folder_of(spec: RunSpec, output: Path) -> Path:
    """Where caches on disk lie."""
    return Path(spec.cache_dir) if spec.cache_dir else OutputLayout(output).cache


def entries(spec: RunSpec, model: PipelineFolder, num_examples: int, topology: Topology) -> list[Entries]:
    """Those of the caches that were asked for, of a dataset of so many images."""
    half = compatibility.resolve_precision(spec, topology) != "no"
    trained = validation_split.trained_on(spec, num_examples)
    of_class = spec.num_class_images if spec.with_prior_preservation else 0
    found = []
    if spec.cache_latents != "no":
        count = (trained + of_class) * (2 if spec.random_flip else 1)
        number = 2 if half and not model.architecture.vae_in_fp32 else 4
        found.append(Entries("latents", spec.cache_latents, count, count, number * _moments(spec, model)))
    if spec.cache_text_embeddings != "no":
        fixed = 1 + spec.with_prior_preservation
        empty = bool(spec.proportion_empty_prompts)
        most = trained if spec.recipe_facts.reads_captions else fixed  # captions may be the same
        size = (2 if half else 4) * _encodings(spec, model)
        found.append(Entries("prompts", spec.cache_text_embeddings, fixed + empty, most + empty, size))
    return found


def _moments(spec: RunSpec, model: PipelineFolder) -> int:
    """Numbers of the VAE's mean and logvar of an image: at least, since a bucket may have fewer pixels than the
    square, by a row of steps along its longer side."""
    side = spec.resolution
    pixels = side**2 - (2 * side * spec.bucket_reso_steps if spec.aspect_ratio_buckets else 0)
    channels = int(model.parts["vae"].config.get("latent_channels", 4))
    return 2 * channels * max(0, pixels) // fit.latent_factor(model) ** 2


def _encodings(spec: RunSpec, model: PipelineFolder) -> int:
    """Numbers that the network is told of a prompt."""
    tokens = spec.prompt_chunks * int(model.parts["text_encoder"].config.get("max_position_embeddings", 77))
    pooled = sum(int(model.parts[name].config.get("projection_dim", 0)) for name in model.architecture.pooled)
    return tokens * int(model.denoiser.config.get("cross_attention_dim", 768)) + pooled
