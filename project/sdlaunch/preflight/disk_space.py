"""How many bytes a job will write, from the shapes of its weights. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdjob.model import trainable
from sdjob.model.pipeline import PipelineFolder
from sdjob.output.layout import StepFolder
from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.run_spec import RunSpec

_FP32 = 4
_LORA_LAYOUTS = 2  # diffusers' and kohya's


@dataclass(frozen=True)
class Sizes:
    """Bytes of one step checkpoint, and of the result."""

    checkpoint: int
    result: int


def sizes(spec: RunSpec, model: PipelineFolder) -> Sizes | None:
    """None where the shapes of the weights cannot be known: a LoRA of pickled weights."""
    count = trainable.parameters(spec, model)
    if count is None:
        return None
    # fp32: the weights, the optimizer's state, and the average where there is one.
    each = _FP32 + OPTIMIZERS[spec.optimizer].state_bytes + (_FP32 if spec.use_ema else 0)
    checkpoint = each * count
    width = _FP32 if spec.export_dtype == "fp32" else _FP32 // 2
    if spec.lora_rank:
        return Sizes(checkpoint, _LORA_LAYOUTS * width * count)
    changed = trainable.parts(spec, model)
    bytes_of = (
        part.num_bytes if width == _FP32 and name not in changed else width * part.num_parameters
        for name, part in model.parts.items()
    )
    files = 2 if spec.export_single_file else 1
    return Sizes(checkpoint, files * sum(bytes_of))


def kept(spec: RunSpec) -> int:
    """Checkpoints that are there at the end of the whole run."""
    made = math.ceil(spec.max_train_steps / spec.checkpointing_steps)
    return min(made, spec.checkpoints_total_limit or made)


def more_at_once(spec: RunSpec, existing: Sequence[StepFolder]) -> int:
    """By how many checkpoints the output folder grows at most, with those that the run goes on from.

    A new one is whole before the oldest beyond the limit goes. What is not continued is kept beside.
    """
    whole = [] if spec.resume == "never" else [folder for folder in existing if folder.defect is None]
    newest = max((folder.step for folder in whole), default=0)
    every = spec.checkpointing_steps
    to_come = max(0, math.ceil(spec.max_train_steps / every) - newest // every)
    if spec.checkpoints_total_limit is None:
        return to_come
    return min(to_come, max(1, spec.checkpoints_total_limit + 1 - len(whole)))
