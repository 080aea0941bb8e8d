"""`cache_latents=auto` and `cache_text_embeddings=auto`: whether images and prompts are encoded once, and where to."""

from __future__ import annotations

from dataclasses import dataclass

from sdjob.automatic import Choice
from sdjob.automatic.example_sizes import CacheEntries
from sdjob.formatting import counted, in_units
from sdjob.settings import steps
from sdjob.settings.run_spec import RunSpec

SETTINGS = ("cache_latents", "cache_text_embeddings")
_MEMORY = 0.1  # fraction of the host's memory that caches may take, each of the two
_DISK = 0.25  # of the free space, which also holds checkpoints


@dataclass(frozen=True)
class Facts:
    """What the choice depends on, besides the settings."""

    world_size: int
    processes: int  # of a node, each with entries of its own in memory
    memory: int | None  # bytes of the host; None: not known
    free: int | None  # bytes where the caches would be; None: not known, or not shared by all nodes
    fixed_crops: bool | None = (
        None  # whether a random crop has no choice, as of square images; None: not known
    )


def latents(spec: RunSpec, entries: CacheEntries, facts: Facts) -> Choice:
    """Where images are encoded to: no, memory or disk; `auto` where only the sizes of all images tell."""
    if spec.cache_latents != "auto":
        return Choice(spec.cache_latents, "as set")
    choice = _where(spec, entries, facts, "image")
    if choice.value == "no" or spec.center_crop or facts.fixed_crops:
        return choice
    if facts.fixed_crops is None:
        return Choice("auto", "center_crop=0: only if no image has to be cropped, which the worker finds out")
    return Choice("no", "center_crop=0 crops an image differently each time")


def prompts(spec: RunSpec, entries: CacheEntries, facts: Facts) -> Choice:
    """Where prompts are encoded to: no, memory or disk."""
    if spec.cache_text_embeddings != "auto":
        return Choice(spec.cache_text_embeddings, "as set")
    if spec.train_text_encoder:
        return Choice("no", "the text encoder is trained")
    return _where(spec, entries, facts, "prompt")


def _where(spec: RunSpec, entries: CacheEntries, facts: Facts, what: str) -> Choice:
    """By how often an entry would be used, and what there is room for."""
    uses = spec.max_train_steps * steps.global_batch(spec, facts.world_size)
    uses *= 2 if spec.with_prior_preservation else 1
    if uses <= entries.most:
        return Choice("no", f"{counted(entries.most, what)} to encode, for {uses:,} uses in all steps")
    size = entries.most * entries.each
    often = f"each {what} is used {uses / entries.most:.3g} times"
    if facts.memory is not None and size * facts.processes <= _MEMORY * facts.memory:
        return Choice("memory", often)
    if facts.free is not None and size <= _DISK * facts.free:
        return Choice("disk", often)
    return Choice("no", f"{in_units(size)} would take too much of the memory and of the disk")
