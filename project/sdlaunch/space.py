"""How many bytes a job will write, from the shapes of its weights. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdjob.output import StepFolder
from sdjob.pipeline import PipelineFolder
from sdjob.spec import TEXT_ENCODER_LAYERS, RunSpec

_FP32 = 4


@dataclass(frozen=True)
class Sizes:
    """Bytes of one step checkpoint, and of the result."""

    checkpoint: int
    result: int


def sizes(spec: RunSpec, model: PipelineFolder) -> Sizes | None:
    """None where the shapes of the weights cannot be known: a LoRA of pickled weights."""
    parts = trained_parts(spec)
    trained = (
        lora_parameters(spec, model)
        if spec.lora_rank
        else sum(model.parts[name].num_parameters for name in parts)
    )
    if trained is None:
        return None
    # fp32: the weights, AdamW's two moments, and the average where there is one.
    copies = 4 if spec.use_ema else 3
    frozen = sum(part.num_bytes for name, part in model.parts.items() if name not in parts)
    return Sizes(copies * _FP32 * trained, _FP32 * trained + (0 if spec.lora_rank else frozen))


def lora_parameters(spec: RunSpec, model: PipelineFolder) -> int | None:
    """Numbers in the LoRA of the trained parts: rank × (inputs + outputs) of each layer that gets one."""
    widths = 0
    for name in trained_parts(spec):
        part = model.parts[name]
        if part.pickled:
            return None
        layers = spec.lora_target_modules if name == "unet" else TEXT_ENCODER_LAYERS
        ends = tuple(f".{layer}.weight" for layer in layers)
        shapes = [t.shape for tensor, t in part.tensors.items() if tensor.endswith(ends) and len(t.shape) > 1]
        widths += sum(int(outputs + math.prod(inputs)) for outputs, *inputs in shapes)
    return spec.lora_rank * widths


def trained_parts(spec: RunSpec) -> tuple[str, ...]:
    """The parts of the pipeline that are trained, or get a LoRA."""
    return ("unet", "text_encoder") if spec.train_text_encoder else ("unet",)


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


def in_units(size: int) -> str:
    """1.5 GB"""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
