"""Which parts of a model are trained, and how many parameters: from shapes of weights and settings. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from sdjob.model.architectures import ArchitectureFacts
from sdjob.model.pipeline import PipelineFolder
from sdjob.model.weights import Tensor
from sdjob.settings.run_spec import RunSpec

_LAYER = re.compile(r"\bencoder\.layers\.(\d+)\.")


def parts(spec: RunSpec, model: PipelineFolder) -> tuple[str, ...]:
    """The parts of the pipeline that are trained, or get a LoRA."""
    architecture = model.architecture
    encoders = architecture.text_encoders if spec.train_text_encoder else ()
    return architecture.denoiser, *encoders


def lora_targets(spec: RunSpec, architecture: ArchitectureFacts, part: str) -> tuple[str, ...]:
    """The layers of a part that get a LoRA."""
    if part == architecture.denoiser:
        return spec.lora_target_modules or architecture.lora_targets
    return architecture.text_encoder_lora_targets


def idle(architecture: ArchitectureFacts, part: str, layers: int) -> tuple[str, ...]:
    """Name prefixes of the weights of a text encoder that no loss depends on, so that they are not trained."""
    unused = part in architecture.unused_last_layer
    return (f"encoder.layers.{layers - 1}.", "final_layer_norm.") if unused else ()


def parameters(spec: RunSpec, model: PipelineFolder) -> int | None:
    """The number of trainable parameters; None: of a LoRA of pickled weights, whose shapes are not known."""
    chosen = {name: model.parts[name] for name in parts(spec, model)}
    unused = {name: _idle(model, name) for name in chosen}
    if not spec.lora_rank:
        every = sum(part.num_parameters for part in chosen.values())
        return every - sum(math.prod(t.shape) for tensors in unused.values() for t in tensors.values())
    if any(part.pickled for part in chosen.values()):
        return None
    return spec.lora_rank * sum(
        _widths(
            {key: t for key, t in part.tensors.items() if key not in unused[name]},
            lora_targets(spec, model.architecture, name),
        )
        for name, part in chosen.items()
    )


def _idle(model: PipelineFolder, name: str) -> dict[str, Tensor]:
    """The weights of a part that no loss depends on; empty for pickles, whose names are not known."""
    tensors = model.parts[name].tensors
    layers = 1 + max((int(found[1]) for key in tensors if (found := _LAYER.search(key))), default=0)
    prefixes = idle(model.architecture, name, layers)
    return {key: t for key, t in tensors.items() if key.removeprefix("text_model.").startswith(prefixes)}


def _widths(tensors: Mapping[str, Tensor], layers: Sequence[str]) -> int:
    """Inputs + outputs of each layer that gets a LoRA: A is [rank, inputs], B is [outputs, rank]."""
    ends = tuple(f".{layer}.weight" for layer in layers)
    shapes = [t.shape for name, t in tensors.items() if name.endswith(ends) and len(t.shape) > 1]
    return sum(outputs + math.prod(inputs) for outputs, *inputs in shapes)
