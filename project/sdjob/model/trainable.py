"""Which parts of a model are trained, and how many parameters, from shapes of weights and settings;
and what is wrong with a LoRA of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from sdjob.files import few, shown
from sdjob.formatting import counted
from sdjob.model.architectures import ArchitectureFacts
from sdjob.model.pipeline import PipelineFolder
from sdjob.model.weights import Tensor, read_header
from sdjob.problems import Problem, bad_input, bad_setting
from sdjob.settings.run_spec import RunSpec

LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
_FIRST_MATRIX = re.compile(r"\.(?:lora_A|lora_down|lora\.down)\.weight$")
_LAYER = re.compile(r"\bencoder\.layers\.(\d{1,4})\.")


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
    return sum(
        spec.lora_rank * (outputs + math.prod(inputs)) + (outputs if spec.use_dora else 0)
        for shapes in _adapted(spec, model).values()
        for outputs, *inputs in shapes.values()
    )


def _idle(model: PipelineFolder, name: str) -> dict[str, Tensor]:
    """The weights of a part that no loss depends on; empty for pickles, whose names are not known."""
    tensors = model.parts[name].tensors
    layers = 1 + max((int(found[1]) for key in tensors if (found := _LAYER.search(key))), default=0)
    prefixes = idle(model.architecture, name, layers)
    return {key: t for key, t in tensors.items() if key.removeprefix("text_model.").startswith(prefixes)}


def _adapted(spec: RunSpec, model: PipelineFolder) -> dict[str, dict[str, tuple[int, ...]]]:
    """Part → its layers with a LoRA → shapes of their weights: A is [rank, inputs], B is [outputs, rank]."""
    found = {}
    for name in parts(spec, model):
        unused, entries = _idle(model, name), lora_targets(spec, model.architecture, name)
        shapes = _layers({key: t for key, t in model.parts[name].tensors.items() if key not in unused})
        found[name] = {
            layer: shape for layer, shape in shapes.items() if any(_is(layer, entry) for entry in entries)
        }
    return found


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The layers that can get a LoRA, linear or convolutional, with the shapes of their weights."""
    return {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in tensors.items()
        if name.endswith(".weight") and len(tensor.shape) > 1
    }


def _is(layer: str, entry: str) -> bool:
    """Whether an entry of lora_target_modules means a layer: its name, or the end of it."""
    return layer == entry or layer.endswith(f".{entry}")


# --- what is wrong with the settings of a LoRA, and the line about it in the plan ---------------------


def lora_problems(spec: RunSpec, model: PipelineFolder) -> Iterator[Problem]:
    """Entries that match no layer, and a LoRA to start from that does not fit. Raises JobError (66)."""
    if spec.lora_weights and not spec.lora_rank:
        found = f"{spec.lora_weights}, with lora_rank=0"
        yield bad_setting("lora_weights", found, "Set lora_rank to the rank of that LoRA.")
    if not spec.lora_rank:
        return
    if layers := _layers(model.denoiser.tensors):
        yield from unmatched(spec, model.architecture, layers)
    if spec.lora_weights:
        yield from _rank_problems(spec)


def unmatched(spec: RunSpec, architecture: ArchitectureFacts, layers: Iterable[str]) -> Iterator[Problem]:
    """A problem for each entry of lora_target_modules that matches none of the denoiser's layers."""
    names = list(layers)
    for entry in lora_targets(spec, architecture, architecture.denoiser):
        if any(_is(layer, entry) for layer in names):
            continue
        ends = sorted({_end(layer) for layer in names})
        below = sorted({name.rpartition(f"{entry}.")[2] for name in names if f".{entry}." in f".{name}"})
        near = get_close_matches(entry, ends, n=3) or below[:4]
        meant = f"Did you mean {' or '.join(near)}? " if near else ""
        remedy = (
            f"{meant}Layers are named by the end of their name, such as {few(architecture.lora_targets)}."
        )
        found = f"{entry!r} matches no layer of the {architecture.denoiser_title}"
        yield bad_setting("lora_target_modules", found, remedy)


def _end(layer: str) -> str:
    """The last of its names that is not a number, and the numbers that follow."""
    words = layer.split(".")
    start = next((number for number in reversed(range(len(words))) if not words[number].isdecimal()), 0)
    return ".".join(words[start:])


def lora_file(path: str) -> Path:
    """The file of an existing LoRA: itself, or that of a result."""
    return Path(path) / LORA_FILE if Path(path).is_dir() else Path(path)


def is_lora(file: Path) -> bool:
    """Whether the header of a file is that of a LoRA. Raises JobError."""
    return any(_FIRST_MATRIX.search(name) for name in read_header(file).tensors)


def _rank_problems(spec: RunSpec) -> Iterator[Problem]:
    file = lora_file(spec.lora_weights or "")
    tensors = read_header(file).tensors
    ranks = sorted({t.shape[0] for name, t in tensors.items() if _FIRST_MATRIX.search(name) and t.shape})
    if not ranks:
        yield bad_input(shown(file), "is not a LoRA", "name the .safetensors file of a LoRA")
    elif len(ranks) > 1:
        found = f"has layers of ranks {', '.join(map(str, ranks))}"
        yield bad_input(shown(file), found, "only a LoRA of one rank can be continued")
    elif ranks[0] != spec.lora_rank:
        found = f"{spec.lora_rank}, and lora_weights has rank {ranks[0]}"
        yield bad_setting("lora_rank", found, f"Set lora_rank={ranks[0]}.")


def lora_summary(spec: RunSpec, model: PipelineFolder) -> str:
    """How many layers get a LoRA, by entry; empty: none, or they are not known."""
    if not spec.lora_rank or not model.denoiser.tensors:
        return ""
    texts = []
    for name, shapes in _adapted(spec, model).items():
        counts = {
            entry: sum(_is(layer, entry) for layer in shapes)
            for entry in lora_targets(spec, model.architecture, name)
        }
        by_entry = ", ".join(f"{count} {entry}" for entry, count in counts.items())
        texts.append(f"{counted(len(shapes), 'layer')} of {name} ({by_entry})")
    kind = "DoRA" if spec.use_dora else "LoRA"
    count = parameters(spec, model) or 0
    return f"{kind}: rank {spec.lora_rank} on {', and '.join(texts)}; {count:,} parameters"
