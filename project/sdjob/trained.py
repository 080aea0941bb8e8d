"""What a run trains, counted: from the shapes of the weights and the settings. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdjob.choices import TEXT_ENCODER_LAYERS
from sdjob.pipeline import Part, PipelineFolder
from sdjob.spec import RunSpec

# What an optimiser keeps of each trained number, in numbers of fp32. Adafactor keeps rows and columns only.
OPTIMISER_STATE = {"adamw": 2.0, "adamw8bit": 0.5, "adafactor": 0.0, "prodigy": 4.0}


def parts(spec: RunSpec) -> tuple[str, ...]:
    """The parts of the pipeline that are trained, or get a LoRA."""
    return ("unet", "text_encoder") if spec.train_text_encoder else ("unet",)


def parameters(spec: RunSpec, model: PipelineFolder) -> int | None:
    """Trained numbers; None: of a LoRA of pickled weights, whose shapes are not known."""
    chosen = {name: model.parts[name] for name in parts(spec)}
    if not spec.lora_rank:
        return sum(part.num_parameters for part in chosen.values())
    if any(part.pickled for part in chosen.values()):
        return None
    layers = {"unet": spec.lora_target_modules, "text_encoder": TEXT_ENCODER_LAYERS}
    return spec.lora_rank * sum(_widths(part, layers[name]) for name, part in chosen.items())


def _widths(part: Part, layers: Sequence[str]) -> int:
    """Inputs + outputs of each layer that gets a LoRA: A is [rank, inputs], B is [outputs, rank]."""
    ends = tuple(f".{layer}.weight" for layer in layers)
    shapes = [t.shape for name, t in part.tensors.items() if name.endswith(ends) and len(t.shape) > 1]
    return sum(outputs + math.prod(inputs) for outputs, *inputs in shapes)
