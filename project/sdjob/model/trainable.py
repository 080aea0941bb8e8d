"""What a run trains, counted: from the shapes of the weights and the settings. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from sdjob.model.pipeline import XL, PipelineFolder
from sdjob.model.weights import Tensor
from sdjob.settings.choices import TEXT_ENCODER_LAYERS
from sdjob.settings.run_spec import RunSpec

_LAYER = re.compile(r"\bencoder\.layers\.(\d+)\.")


def parts(spec: RunSpec, model: PipelineFolder) -> tuple[str, ...]:
    """The parts of the pipeline that are trained, or get a LoRA."""
    encoders = [name for name in model.parts if name.startswith("text_encoder")]
    return ("unet", *encoders) if spec.train_text_encoder else ("unet",)


def idle(class_name: str, part: str, layers: int) -> tuple[str, ...]:
    """What the names of those weights of a text encoder begin with that no loss depends on, so that they are not
    trained: the U-Net of SDXL is told what enters the last layer of the first encoder, and nothing after it."""
    of_xl = class_name == XL and part == "text_encoder"
    return (f"encoder.layers.{layers - 1}.", "final_layer_norm.") if of_xl else ()


def parameters(spec: RunSpec, model: PipelineFolder) -> int | None:
    """Trained numbers; None: of a LoRA of pickled weights, whose shapes are not known."""
    chosen = {name: model.parts[name] for name in parts(spec, model)}
    if not spec.lora_rank:
        every = sum(part.num_parameters for part in chosen.values())
        return every - sum(math.prod(t.shape) for name in chosen for t in _idle(model, name).values())
    if any(part.pickled for part in chosen.values()):
        return None
    return spec.lora_rank * sum(
        _widths(
            {key: t for key, t in part.tensors.items() if key not in _idle(model, name)},
            spec.lora_target_modules if name == "unet" else TEXT_ENCODER_LAYERS,
        )
        for name, part in chosen.items()
    )


def _idle(model: PipelineFolder, name: str) -> dict[str, Tensor]:
    """The weights of a part that no loss depends on; none of pickles, whose names are not known."""
    tensors = model.parts[name].tensors
    layers = 1 + max((int(found[1]) for key in tensors if (found := _LAYER.search(key))), default=0)
    prefixes = idle(model.class_name, name, layers)
    return {key: t for key, t in tensors.items() if key.removeprefix("text_model.").startswith(prefixes)}


def _widths(tensors: Mapping[str, Tensor], layers: Sequence[str]) -> int:
    """Inputs + outputs of each layer that gets a LoRA: A is [rank, inputs], B is [outputs, rank]."""
    ends = tuple(f".{layer}.weight" for layer in layers)
    shapes = [t.shape for name, t in tensors.items() if name.endswith(ends) and len(t.shape) > 1]
    return sum(outputs + math.prod(inputs) for outputs, *inputs in shapes)
