"""The LoRA of a run, added to the parts that are trained, at zero or from an existing one; and merging of another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from sdjob import reading
from sdjob.files import few, shown
from sdjob.model import key_names, trainable, weights
from sdjob.problems import JobError, Problem, bad_input, bad_setting
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Parts

if TYPE_CHECKING:  # takes long to import, and most runs have no LoRA
    from peft import LoraConfig

ADAPTER = "default"
_METADATA = "lora_adapter_metadata"  # of diffusers: the configs of peft, as JSON
_SCALE = (".lora_alpha", ".use_rslora")  # what decides on the scale
_MATRICES = {  # here → in files: of peft and kohya's programs, and of older versions of diffusers
    "A": ("lora_A.weight", "lora_down.weight", "lora.down.weight"),
    "B": ("lora_B.weight", "lora_up.weight", "lora.up.weight"),
    "magnitude": ("lora_magnitude_vector", "lora_magnitude_vector.weight", "dora_scale"),
}


def add(parts: Parts, spec: RunSpec, idle: Mapping[str, Sequence[str]]) -> None:
    """Add a LoRA to the denoiser and to the text encoders that `idle` names. Raises JobError (64, 66).

    Hu et al. 2021, arXiv:2106.09685: A is Gaussian and B zero, so that training starts at the base model.
    """
    facts = parts.architecture.facts
    if problems := list(trainable.unmatched(spec, facts, layers_of(parts.denoiser))):
        raise JobError(problems)
    # The initial A must be the same on every rank and in every run of this seed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        for name in (facts.denoiser, *idle):
            layers = trainable.lora_targets(spec, facts, name)
            try:
                parts.trainable[name].add_adapter(_config(spec, layers, idle.get(name, ())))
            except ValueError as error:
                remedy = f"Name layers of the denoiser, such as {','.join(facts.lora_targets)}."
                raise JobError(bad_setting("lora_target_modules", str(error), remedy)) from None
    if spec.lora_weights:
        _start_from(trainable.lora_file(spec.lora_weights), parts, [facts.denoiser, *idle])


def layers_of(module: nn.Module) -> list[str]:
    """The layers that can get a LoRA."""
    return [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]


def in_files(parts: Parts, part: str, name: str) -> str:
    """The name of a part's weight or layer in files."""
    is_clip = parts.architecture.facts.components[part].classes[0].startswith("CLIPText")
    return key_names.stored_name(name) if is_clip else name


def _config(spec: RunSpec, layers: Sequence[str], idle: Sequence[str]) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=spec.lora_rank,
        lora_alpha=spec.lora_scale_alpha,
        lora_dropout=spec.lora_dropout,
        use_dora=spec.use_dora,  # Liu et al. 2024, arXiv:2402.09353
        use_rslora=spec.use_rslora,  # Kalajdzievski 2023, arXiv:2312.03732
        init_lora_weights="gaussian",
        target_modules=list(layers),
        exclude_modules=[name for name in idle if name.endswith(tuple(layers))] or None,
    )


# --- an existing LoRA --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Existing:
    """A LoRA on disk: its tensors, and the scale of each layer."""

    path: Path
    tensors: Mapping[str, torch.Tensor]
    configs: Mapping[str, float]  # "unet.lora_alpha" → 4, …

    def key(self, layers: Sequence[str], matrix: str) -> str | None:
        """The name of a matrix, given the names that its layer can have."""
        names = (f"{layer}.{suffix}" for layer in layers for suffix in _MATRICES[matrix])
        return next((name for name in names if name in self.tensors), None)

    def scale(self, layers: Sequence[str], part: str, rank: int) -> tuple[float, str | None]:
        """What B A is multiplied by, and the tensor that says so."""
        for layer in layers:
            if (name := f"{layer}.alpha") in self.tensors:
                return float(self.tensors[name]) / rank, name
        alpha = self.configs.get(f"{part}.lora_alpha", rank)
        root = self.configs.get(f"{part}.use_rslora", 0)
        return alpha / (math.sqrt(rank) if root else rank), None


def _start_from(path: Path, parts: Parts, names: Sequence[str]) -> None:
    """Start from the LoRA in a file, all of which must be used; layers that it lacks stay at zero. Raises JobError."""
    existing = _Existing(path, load_file(path), _configs(path))
    used = {name for part in names for name in _started(existing, parts, part)}
    left = sorted(existing.tensors.keys() - used)
    if left:
        found = f"{shown(path)} has {len(left)} tensors that this run does not train, such as {few(left, 2)}"
        remedy = "Add their layers to lora_target_modules (or set train_text_encoder=1, use_dora=1)."
        raise JobError(bad_setting("lora_weights", found, remedy))


def _configs(path: Path) -> dict[str, Any]:
    """The configs in the metadata of diffusers' layout. Raises JobError (66)."""
    try:
        configs = reading.json_of(weights.read_header(path).metadata.get(_METADATA, "{}"))
        return {key: float(value) for key, value in configs.items() if key.endswith(_SCALE)}
    except (ValueError, TypeError, AttributeError) as error:
        found = f"has metadata {_METADATA} that cannot be read ({error})"
        raise JobError(bad_input(shown(path), found, "download or copy this file again")) from error


@dataclass(frozen=True)
class _Layer:
    """What a LoRA on disk has for one layer: the names of its tensors, and the scale of their product."""

    name: str  # in the part
    a: str
    b: str
    scale: float
    alpha: str | None  # the tensor that says the scale
    magnitude: str | None  # of a DoRA

    @property
    def tensors(self) -> set[str | None]:
        return {self.a, self.b, self.alpha, self.magnitude}


def _layers_in(existing: _Existing, parts: Parts, part: str, layers: Iterable[str]) -> Iterator[_Layer]:
    """Those of a part's layers that the LoRA has, by any of the names that programs give them."""
    stored = {name: in_files(parts, part, name) for name in layers}
    facts = parts.architecture.facts
    kohya = key_names.kohya_layers(facts, part, parts.trainable[part].config, stored.values())
    for name, in_file in stored.items():
        underscored = f"{facts.kohya_prefixes[part]}_{in_file.replace('.', '_')}"
        names = (f"{part}.{in_file}", f"{part}.{name}", kohya[in_file], underscored)
        a, b = existing.key(names, "A"), existing.key(names, "B")
        if a and b:
            scale, alpha = existing.scale(names, part, existing.tensors[a].shape[0])
            yield _Layer(name, a, b, scale, alpha, existing.key(names, "magnitude"))


def _started(existing: _Existing, parts: Parts, part: str) -> Iterator[str]:
    """Start the layers of a part; yields the tensors that are used. Raises JobError (66)."""
    modules = parts.trainable[part].named_modules()
    adapted = {name: module for name, module in modules if hasattr(module, "lora_A")}
    for layer in _layers_in(existing, parts, part, adapted):
        target = adapted[layer.name]
        # The scale of this run may be another: outputs stay equal.
        factor = layer.scale / target.scaling[ADAPTER]
        values = {
            layer.a: (target.lora_A[ADAPTER].weight, existing.tensors[layer.a]),
            layer.b: (target.lora_B[ADAPTER].weight, existing.tensors[layer.b] * factor),
        }
        if layer.magnitude and ADAPTER in getattr(target, "lora_magnitude_vector", {}):
            magnitude = target.lora_magnitude_vector[ADAPTER].weight
            values[layer.magnitude] = (magnitude, existing.tensors[layer.magnitude])
        for key, (weight, value) in values.items():
            if weight.numel() != value.numel():
                raise JobError(_other_shape(existing.path, key, value, weight))
            weight.data.copy_(value.view_as(weight))
        yield from (*values, *([layer.alpha] if layer.alpha else []))


def _other_shape(path: Path, key: str, value: torch.Tensor, target: torch.Tensor) -> Problem:
    found = f"{key} is {list(value.shape)}, and this model and lora_rank need {list(target.shape)}"
    return bad_input(shown(path), found, "use a LoRA of this kind of model, with its rank as lora_rank")


# --- a LoRA in the weights, to generate with ---------------------------------------------------------


def merge(path: Path, parts: Parts, strength: float) -> None:
    """Add a LoRA on disk, in any layout, to the weights that it belongs to: V = W + strength · scale · B A.

    Of a DoRA the weights are m · V / |V| (arXiv:2402.09353, equation 5). Raises JobError (66) unless all of it fits.
    """
    existing = _Existing(path, load_file(path), _configs(path))
    found = {
        part: list(_layers_in(existing, parts, part, layers_of(m))) for part, m in parts.trainable.items()
    }
    used = {key for layers in found.values() for each in layers for key in each.tensors}
    if left := sorted(existing.tensors.keys() - used):
        kind = parts.architecture.facts.title
        what = f"{len(left)} of its {len(existing.tensors)} tensors belong to no layer of the model ({kind})"
        raise JobError(bad_input(shown(path), f"{what}, such as {few(left, 2)}", _ANOTHER_BASE))
    for part, layers in found.items():
        for layer in layers:
            _merge_layer(existing, layer, parts.trainable[part].get_submodule(layer.name).weight, strength)


_ANOTHER_BASE = "name the model that it was trained on, or a LoRA of this one (plain LoRA or DoRA)"


def _merge_layer(existing: _Existing, layer: _Layer, weight: torch.Tensor, strength: float) -> None:
    a, b = (existing.tensors[key].to(weight.device, torch.float32).flatten(1) for key in (layer.a, layer.b))
    old = weight.data.float().flatten(1)
    if (b.shape[0], a.shape[0], a.shape[1]) != (old.shape[0], b.shape[1], old.shape[1]):
        there = f"[{b.shape[0]}, {a.shape[1]}]"
        found = (
            f"changes {layer.name} as [outputs, inputs] = {there}, which is {list(old.shape)} in the model"
        )
        raise JobError(bad_input(shown(existing.path), found, _ANOTHER_BASE))
    new = old + strength * layer.scale * (b @ a)
    if layer.magnitude:
        new *= existing.tensors[layer.magnitude].to(new).view(-1, 1) / new.norm(dim=1, keepdim=True)
    weight.data.copy_(new.view_as(weight))
