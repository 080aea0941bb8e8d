"""The LoRA of a run: added to the parts that are trained, at zero or from an existing LoRA."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn

from sdjob import reading
from sdjob.files import few, shown
from sdjob.model import key_names, trainable, weights
from sdjob.problems import JobError, Problem, bad_input, bad_setting
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Parts

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


def _started(existing: _Existing, parts: Parts, part: str) -> Iterator[str]:
    """Start the layers of a part; yields the tensors that are used. Raises JobError (66)."""
    module = parts.trainable[part]
    adapted = {name: layer for name, layer in module.named_modules() if hasattr(layer, "lora_A")}
    stored = {name: in_files(parts, part, name) for name in adapted}
    kohya = key_names.kohya_layers(parts.architecture.facts, part, module.config, stored.values())
    prefix = parts.architecture.facts.kohya_prefixes[part]
    for name, layer in adapted.items():
        underscored = f"{prefix}_{stored[name].replace('.', '_')}"
        layers = (f"{part}.{stored[name]}", f"{part}.{name}", kohya[stored[name]], underscored)
        a, b = existing.key(layers, "A"), existing.key(layers, "B")
        if a is None or b is None:
            continue
        scale, alpha = existing.scale(layers, part, existing.tensors[a].shape[0])
        # The scale of this run may be another: outputs stay equal.
        values = {
            a: (layer.lora_A[ADAPTER].weight, existing.tensors[a]),
            b: (layer.lora_B[ADAPTER].weight, existing.tensors[b] * (scale / layer.scaling[ADAPTER])),
        }
        magnitude = existing.key(layers, "magnitude")
        if magnitude and ADAPTER in getattr(layer, "lora_magnitude_vector", {}):
            target = layer.lora_magnitude_vector[ADAPTER].weight
            values[magnitude] = (target, existing.tensors[magnitude])
        for key, (target, value) in values.items():
            if target.numel() != value.numel():
                raise JobError(_other_shape(existing.path, key, value, target))
            target.data.copy_(value.view_as(target))
        yield from (*values, *([alpha] if alpha else []))


def _other_shape(path: Path, key: str, value: torch.Tensor, target: torch.Tensor) -> Problem:
    found = f"{key} is {list(value.shape)}, and this model and lora_rank need {list(target.shape)}"
    return bad_input(shown(path), found, "use a LoRA of this kind of model, with its rank as lora_rank")
