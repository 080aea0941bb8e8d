"""The result: a complete pipeline, or a LoRA, that diffusers loads; and the same for other programs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from sdjob.model import key_names
from sdjob.model.key_names import current_name
from sdjob.model.pipeline import PipelineFolder
from sdjob.model.trainable import LORA_FILE
from sdjob.model.weights import Part
from sdjob.output.layout import INDEX_FILE
from sdjob.settings.run_spec import RunSpec
from sdjob.writing import remove, sync_tree
from sdtrain.architectures.base import Architecture, Parts
from sdtrain.export import webui
from sdtrain.model.lora import in_files
from sdtrain.model.trainable_model import part_of
from sdtrain.runtime import heartbeat

if TYPE_CHECKING:  # takes long to import, and most runs have no LoRA
    from peft import LoraConfig

Weights = dict[str, torch.Tensor]

WEBUI_LORA = "webui/lora.safetensors"
WEBUI_MODEL = "webui/model.safetensors"
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SCHEDULER_FILE = "scheduler_config.json"
_ZERO_SNR = "rescale_betas_zero_snr"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".onnx", ".pb")
# Of model.fp16.safetensors and of an index of shards; the shards themselves keep the names that it gives.
_VARIANT = re.compile(r"\.(?:fp16|bf16|fp32|non_ema)(?=\.(?:safetensors|bin|json)$)")


@heartbeat.working("export")
def export(folder: Path, source: PipelineFolder, parts: Parts, state: Weights, spec: RunSpec) -> None:
    """Write the result into `folder`, alongside the step folders; whole or not at all. By one rank.

    state: trained weights by name, fp32. The weights of frozen parts are copied byte for byte, unless another type is
    asked for.
    """
    temporary = folder / ".export.tmp"
    remove(temporary)  # left by a process that was killed
    temporary.mkdir(parents=True)
    dtype = _DTYPES[spec.export_dtype]
    state = _cast(state, dtype)
    trained = {name: weights for name in parts.trainable if (weights := part_of(state, name))}
    if spec.lora_rank:
        _write_lora(temporary, parts, trained, spec)
    else:
        _write_pipeline(temporary, source, parts, trained)
        if spec.export_dtype != "fp32":
            for file in temporary.glob("*/*.safetensors"):
                _save(file, _cast(load_file(file), dtype))
        if spec.export_single_file:
            title = f"Fine-tuned {Path(spec.pretrained_model_name_or_path).stem}"
            _write_single_file(temporary, parts.architecture, title)
    sync_tree(temporary)
    _put_in_place(temporary, folder)


def _cast(weights: Weights, dtype: torch.dtype) -> Weights:
    return {name: w.to(dtype) if w.is_floating_point() else w for name, w in weights.items()}


def _save(file: Path, weights: Weights, metadata: Mapping[str, str] | None = None) -> None:
    file.parent.mkdir(exist_ok=True)
    contiguous = {name: w.contiguous() for name, w in weights.items()}
    save_file(contiguous, file, metadata={"format": "pt", **(metadata or {})})


def _load(files: tuple[Path, ...]) -> Weights:
    """Weights of safetensors files or of pickles, on the host."""
    weights: Weights = {}
    for file in files:
        safe = file.suffix == ".safetensors"
        weights |= load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    return weights


def _write_lora(folder: Path, parts: Parts, trained: Mapping[str, Weights], spec: RunSpec) -> None:
    """Write a LoRA in diffusers' layout and in kohya's.

    The former by PEFT's names (lora_A, lora_B), which diffusers reads since 0.22. Its converter to older names
    (lora.down, lora.up) knows attention layers only; of a file with both, it does not load the attention.
    """
    from peft.utils import get_peft_model_state_dict

    facts, arguments = parts.architecture.facts, dict[str, Any]()
    kohya: Weights = {}
    for name, weights in trained.items():
        module = parts.trainable[name]
        config = module.peft_config["default"]
        layers = get_peft_model_state_dict(module, state_dict=weights, save_embedding_layers=False)
        layers = {in_files(parts, name, key): weight for key, weight in layers.items()}
        # transformers does not find the magnitudes of a DoRA by peft's short name.
        short = f".{webui.MAGNITUDE}" if name in parts.text_encoders else "-"
        arguments[f"{name}_lora_layers"] = {
            f"{key}.weight" if key.endswith(short) else key: weight for key, weight in layers.items()
        }
        arguments[f"{name}_lora_adapter_metadata"] = _described(config)
        names = key_names.kohya_layers(facts, name, module.config, {*map(webui.layer_of, layers)})
        kohya |= webui.kohya_lora(names, layers, spec.lora_scale)
    parts.architecture.pipeline.save_lora_weights(folder, weight_name=LORA_FILE, **arguments)
    configs = {name: part.config for name, part in parts.components.items() if hasattr(part, "config")}
    configs = {key: getattr(config, "to_dict", lambda c=config: dict(c))() for key, config in configs.items()}
    configs["denoiser"] = configs[facts.denoiser]
    title = f"LoRA for {Path(spec.pretrained_model_name_or_path).stem}"
    metadata = webui.metadata(f"{parts.architecture.modelspec(configs)}/lora", configs, title)
    version = parts.architecture.kohya_version(configs)
    metadata |= webui.kohya_metadata(version, config, spec.lora_scale, Path(WEBUI_LORA).stem)
    metadata["modelspec.resolution"] = f"{spec.resolution}x{spec.resolution}"
    _save(folder / WEBUI_LORA, kohya, metadata)
    webui.seal(folder / WEBUI_LORA)


def _described(config: LoraConfig) -> dict[str, Any]:
    """The config as values of JSON, equal for equal ones: peft keeps names in sets, whose order is random."""
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in vars(config).items()}
    return {**config.to_dict(), **{key: value for key, value in values.items() if isinstance(value, list)}}


def _write_single_file(folder: Path, architecture: Architecture, title: str) -> None:
    """Write all parts of the exported pipeline into one file, by the names of the original Stable Diffusion."""
    facts = architecture.facts
    configs = {"scheduler": json.loads((folder / "scheduler" / _SCHEDULER_FILE).read_text())}
    weights = webui.marks(configs["scheduler"])
    for part in (facts.denoiser, "vae", *facts.text_encoders):
        configs[part] = json.loads((folder / part / "config.json").read_text())
        files = tuple((folder / part).glob("*.safetensors")) or tuple((folder / part).glob("*.bin"))
        named = {current_name(name): weight for name, weight in _load(files).items()}
        weights |= webui.original(architecture.original_names(part, configs[part], named), named)
    configs["denoiser"] = configs[facts.denoiser]
    _save(folder / WEBUI_MODEL, weights, webui.metadata(architecture.modelspec(configs), configs, title))
    webui.seal(folder / WEBUI_MODEL)


def _write_pipeline(
    folder: Path, source: PipelineFolder, parts: Parts, trained: Mapping[str, Weights]
) -> None:
    """Write the components that the index names: other folders alongside them may be anything, and large."""
    facts = parts.architecture.facts
    known = (*facts.components, *facts.optional)
    for name in (name for name in known if isinstance(parts.index.get(name), list)):
        part = source.parts[name].folder if name in source.parts else source.path / name
        if part.is_dir():
            _copy_part(part, folder / name, weights=name not in trained)
    shutil.copyfile(source.path / INDEX_FILE, folder / INDEX_FILE)
    _write_scheduler(folder, parts)
    for name, weights in trained.items():
        component, stored = source.architecture.components[name], source.parts[name]
        assert component.weights
        whole = {in_files(parts, name, key): weight for key, weight in weights.items()}
        if name in parts.text_encoders:
            whole = {**_untrained(parts, name, stored), **whole}
        _save(folder / name / f"{component.weights[0]}.safetensors", whole)


def _write_scheduler(folder: Path, parts: Parts) -> None:
    """Make a scheduler whose noise schedule the run changed part of the result, so that it generates with it."""
    file = folder / "scheduler" / _SCHEDULER_FILE
    if not parts.sampler.config.get(_ZERO_SNR) or json.loads(file.read_text()).get(_ZERO_SNR):
        return
    parts.sampler.save_pretrained(folder / "scheduler")
    index = {**parts.index, "scheduler": ["diffusers", type(parts.sampler).__name__]}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _untrained(parts: Parts, name: str, stored: Part) -> Weights:
    """The frozen weights of a trained text encoder, fp32, from the base model: a strategy may hold them in shards."""
    frozen = {n: p for n, p in parts.text_encoders[name].named_parameters() if not p.requires_grad}
    names = [in_files(parts, name, key) for key in frozen]
    stored_weights = _load(stored.weights) if names else {}
    weights = {in_files(parts, name, key): weight for key, weight in stored_weights.items()}
    return {name: weights[name].float() for name in names}


def _copy_part(source: Path, target: Path, *, weights: bool) -> None:
    """Copy the files of one part; of its weights only those that diffusers loads by default.

    Not copied: hidden files, such as a hub's cache; pickles that have a safetensors twin; a variant (fp16)
    alongside the plain file. A variant without the plain file takes the plain name.
    """
    target.mkdir()
    names = {path.name for path in source.iterdir() if path.is_file() and not path.name.startswith(".")}
    safe = any(name.endswith(".safetensors") for name in names)
    for name in sorted(names):
        plain = _VARIANT.sub("", name)
        is_weights = any(suffix in name for suffix in (".safetensors", *_PICKLES))
        is_pickle = any(suffix in name for suffix in _PICKLES)
        if is_weights and (not weights or (safe and is_pickle) or (plain != name and plain in names)):
            continue
        shutil.copyfile(source / name, target / plain)
    _load_in_fp32(target / "config.json")


def _load_in_fp32(config: Path) -> None:
    """Have a part that is stored in half precision loaded in fp32, like the trained one, unless told otherwise.

    diffusers does so by default; transformers takes the type that the config names, and the two would not fit together.
    """
    values = json.loads(config.read_text()) if config.is_file() else {}
    half = {key: "float32" for key in ("dtype", "torch_dtype") if "float16" in str(values.get(key))}
    if half:
        config.write_text(json.dumps({**values, **half}, indent=2) + "\n")


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Move each item over its predecessor, the index last: without it, a half-written result does not load."""
    items = sorted(temporary.iterdir(), key=lambda item: item.name in (INDEX_FILE, LORA_FILE))
    (folder / INDEX_FILE).unlink(missing_ok=True)
    for item in items:
        target = folder / item.name
        if item.is_dir() or target.is_dir():
            remove(target)
        item.replace(target)
    temporary.rmdir()
