"""Settings that need less memory: candidates from mild to drastic, judged by the estimate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sdjob.model.memory_estimate import estimate
from sdjob.model.pipeline import PipelineFolder
from sdjob.settings import compatibility
from sdjob.settings.compatibility import Topology
from sdjob.settings.fields import settings_of
from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec

_HEADROOM = 0.9  # fraction of the memory that a setting may need to be recommended


def fitting(spec: RunSpec, model: PipelineFolder, topology: Topology, memory: int) -> list[str]:
    """Settings that would fit into this memory with some room, as they are typed; the mildest first."""
    found: list[dict[str, Any]] = []
    for change in _changes(spec):
        if any(enough.keys() <= change.keys() for enough in found):
            continue
        other = spec.model_copy(update=change)
        need = estimate(other, model, topology)
        if need and need.total <= _HEADROOM * memory and not compatibility.problems(other, topology):
            found.append(change)
    settings = settings_of(RunSpec)
    return [
        " ".join(
            f"{settings[name].name or name}={compatibility.typed(value)}" for name, value in change.items()
        )
        for change in found
    ]


def _changes(spec: RunSpec) -> Iterator[dict[str, Any]]:
    """Milder ones first; what changes the result of the training comes last."""
    checkpointing: dict[str, Any] = {} if spec.gradient_checkpointing else {"gradient_checkpointing": True}
    smaller = list(_smaller_batches(spec))
    if checkpointing:
        yield checkpointing
    yield from smaller
    yield from ({**checkpointing, **batch} for batch in smaller)
    if not PLUGINS[spec.plugin].shards:
        yield from ({"plugin": plugin} for plugin, facts in PLUGINS.items() if facts.shards)
    if spec.mixed_precision == "no":
        yield {"mixed_precision": "bf16"}
    least = {**checkpointing, **(smaller[-1] if smaller else {})}
    if spec.use_ema:
        yield {**least, "use_ema": False}
    if not spec.lora_rank:
        yield {"lora_rank": 16}
        yield {**least, "lora_rank": 16}


def _smaller_batches(spec: RunSpec) -> Iterator[dict[str, Any]]:
    """Half the batch and twice the accumulation, as often as possible, so that a step sees as many images."""
    batch, accumulation = spec.train_batch_size, spec.gradient_accumulation_steps
    while batch % 2 == 0:
        batch, accumulation = batch // 2, accumulation * 2
        yield {"train_batch_size": batch, "gradient_accumulation_steps": accumulation}
