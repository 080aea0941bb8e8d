"""What settings that are `auto` become in a plan, and why, from what was found."""

from __future__ import annotations

import time
from pathlib import Path

from sdjob.automatic import Choice, caching, compilation, example_sizes, machine, weights_dtype
from sdjob.output.layout import OutputLayout
from sdjob.settings.run_spec import RunSpec
from sdlaunch.preflight import estimates
from sdlaunch.preflight.job import Job
from sdlaunch.timeouts import NoAnswer, Task

_PATIENCE = 2.0  # seconds for the free space of a disk; the checks say so where it does not answer


def chosen(job: Job) -> tuple[RunSpec, dict[str, str]]:
    """The settings with what `auto` becomes, as far as the launcher can say, and the sources of those values."""
    spec, topology = job.spec, job.topology
    choices = {
        "weights_dtype": weights_dtype.choose(spec, topology),
        "compile": compilation.choose(spec, topology, machine.lacking(topology.device)),
        **_caches(job),
    }
    automatic = {name: choice for name, choice in choices.items() if getattr(spec, name) == "auto"}
    spec = spec.model_copy(update={name: choice.value for name, choice in automatic.items()})
    return spec, {name: f"auto: {choice.reason}" for name, choice in automatic.items()}


def _caches(job: Job) -> dict[str, Choice]:
    """None for a job whose model or images are not known."""
    spec, model, where = job.spec, job.contents.model, job.cluster
    if model is None or not job.contents.data or job.has_script:
        return {}
    shared = where.nodes == 1 or not spec.cache_dir
    free = _free(OutputLayout(job.mounts.output).cache(spec.cache_dir)) if shared else None
    facts = caching.Facts(where.world_size, where.nproc_per_node, machine.host_memory(), free)
    latents = example_sizes.latents(spec, model, job.examples, job.topology)
    prompts = example_sizes.prompts(spec, model, job.examples, job.topology)
    return {
        "cache_latents": caching.latents(spec, latents, facts),
        "cache_text_embeddings": caching.prompts(spec, prompts, facts),
    }


def _free(folder: Path) -> int | None:
    """The free bytes of the disk of a folder; None: it does not say."""
    try:
        return Task(lambda: estimates.free_at(folder)[2]).result(time.monotonic() + _PATIENCE)
    except (NoAnswer, OSError):
        return None
