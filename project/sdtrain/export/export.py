"""The result: a complete pipeline, or a LoRA, that diffusers loads as it stands; and the same for other programs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from sdjob.files import sync_tree
from sdjob.model.pipeline import XL, Part, PipelineFolder
from sdjob.output.layout import INDEX_FILE, LORA_FILE
from sdjob.settings.run_spec import RunSpec
from sdtrain import architectures
from sdtrain.export import webui
from sdtrain.model.denoiser import UNET, part_of
from sdtrain.model.load import Parts

WEBUI_LORA = "webui/lora.safetensors"
WEBUI_MODEL = "webui/model.safetensors"
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_UNET_FILE, _TEXT_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"
_SCHEDULER_FILE = "scheduler_config.json"
_ZERO_SNR = "rescale_betas_zero_snr"  # the noise schedule that was trained with is drawn with
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".onnx", ".pb")
# Of model.fp16.safetensors and of an index of shards; the shards themselves keep the names that it gives.
_VARIANT = re.compile(r"\.(?:fp16|bf16|fp32|non_ema)(?=\.(?:safetensors|bin|json)$)")


def export(
    folder: Path, source: PipelineFolder, parts: Parts, state: dict[str, torch.Tensor], spec: RunSpec
) -> None:
    """Writes the result into `folder`, beside the step folders; whole or not at all. By one rank.

    `state`: the trained weights by name, fp32. Unless another type is asked for, the weights of the frozen
    parts are copied byte by byte.
    """
    temporary = folder / ".export.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    dtype = _DTYPES[spec.export_dtype]
    if spec.lora_rank:
        _write_lora(temporary, parts, _cast(state, dtype))
    else:
        _write_pipeline(temporary, source, parts, _cast(state, dtype))
        if spec.export_dtype != "fp32":
            for file in temporary.glob("*/*.safetensors"):
                _save(file, _cast(load_file(file), dtype))
        if spec.export_single_file:
            _write_single_file(temporary, f"Fine-tuned {Path(spec.pretrained_model_name_or_path).stem}")
    sync_tree(temporary)
    _put_in_place(temporary, folder)


def _cast(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: w.to(dtype) if w.is_floating_point() else w for name, w in weights.items()}


def _save(file: Path, weights: dict[str, torch.Tensor], about: dict[str, str] | None = None) -> None:
    file.parent.mkdir(exist_ok=True)
    metadata = {"format": "pt", **(about or {})}
    save_file({name: w.contiguous() for name, w in weights.items()}, file, metadata=metadata)


def _write_lora(folder: Path, parts: Parts, state: dict[str, torch.Tensor]) -> None:
    """In the layout of diffusers, and in kohya's.

    The former in PEFT's names (lora_A, lora_B), which diffusers reads since 0.22. Its converter to older names
    (lora.down, lora.up) knows attention layers only, and of a file that mixes both, the attention is not loaded.
    """
    architecture = architectures.of(parts)
    layers = {UNET: _adapter(parts.unet, part_of(state, UNET))}
    configs = {UNET: parts.unet.peft_config["default"]}
    for name, encoder in parts.text_encoders.items():
        if of_encoder := part_of(state, name):
            layers[name] = _as_in_files(_adapter(encoder, of_encoder))
            configs[name] = encoder.peft_config["default"]
    given: dict[str, Any] = {}
    for part, weights in layers.items():
        given[f"{part}_lora_layers"] = weights
        given[f"{part}_lora_adapter_metadata"] = configs[part].to_dict()
    architecture.pipeline.save_lora_weights(folder, weight_name=LORA_FILE, **given)
    kohya: dict[str, torch.Tensor] = {}
    for part, weights in layers.items():
        kohya |= webui.kohya_lora(architecture.kohya_prefixes[part], weights, configs[part].lora_alpha)
    _save(folder / WEBUI_LORA, kohya)


def _write_single_file(folder: Path, title: str) -> None:
    """All parts of the exported pipeline in one file, by the names of the original Stable Diffusion."""
    xl = json.loads((folder / INDEX_FILE).read_text())["_class_name"] == XL
    scheduler = json.loads((folder / "scheduler" / _SCHEDULER_FILE).read_text())
    configs = {"scheduler": scheduler}
    everything = webui.marks(scheduler)
    for part in (UNET, "vae", "text_encoder", *(["text_encoder_2"] if xl else [])):
        configs[part] = json.loads((folder / part / "config.json").read_text())
        everything |= webui.original(part, configs[part], _weights_in(folder / part), xl=xl)
    _save(folder / WEBUI_MODEL, everything, webui.about_model(configs, title, xl=xl))


def _weights_in(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
    for file in () if weights else folder.glob("*.bin"):
        weights |= torch.load(file, map_location="cpu", weights_only=True)
    return weights


def _adapter(part: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(
        part, state_dict=state, save_embedding_layers=False
    )
    return weights


def _as_in_files(text_encoder: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a text encoder by the names that every version of transformers reads."""
    return {_name_in_files(name): weight for name, weight in text_encoder.items()}


def _name_in_files(name: str) -> str:
    """Below `text_model` is all but the projection of the pooled output; recent versions hold CLIPTextModel flat."""
    return name if name.startswith("text_projection.") else f"text_model.{name.removeprefix('text_model.')}"


def _write_pipeline(
    folder: Path, source: PipelineFolder, parts: Parts, state: dict[str, torch.Tensor]
) -> None:
    """Only the parts that the index names: other folders beside them may be anything, and large."""
    index = json.loads((source.path / INDEX_FILE).read_text())
    trained = {UNET: part_of(state, UNET)}
    for name, encoder in parts.text_encoders.items():
        if weights := part_of(state, name):
            trained[name] = _as_in_files({**_untrained(encoder, source.parts[name]), **weights})
    for name in sorted(name for name, entry in index.items() if isinstance(entry, list)):
        if (source.path / name).is_dir():
            _copy_part(source.path / name, folder / name, weights=not trained.get(name))
    shutil.copyfile(source.path / INDEX_FILE, folder / INDEX_FILE)
    before = json.loads((source.path / "scheduler" / _SCHEDULER_FILE).read_text())
    if parts.sampler.config.get(_ZERO_SNR) and not before.get(_ZERO_SNR):
        parts.sampler.save_pretrained(folder / "scheduler")
        index["scheduler"] = ["diffusers", type(parts.sampler).__name__]
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    for name, weights in trained.items():
        _save(folder / name / (_UNET_FILE if name == UNET else _TEXT_FILE), weights)


def _untrained(encoder: nn.Module, stored: Part) -> dict[str, torch.Tensor]:
    """The weights of a trained text encoder that are not trained themselves, fp32, as they are in the base: a strategy
    may hold them in shards."""
    names = [_name_in_files(name) for name, p in encoder.named_parameters() if not p.requires_grad]
    weights: dict[str, torch.Tensor] = {}
    for file in stored.weights if names else ():
        weights |= (
            torch.load(file, map_location="cpu", weights_only=True) if stored.pickled else load_file(file)
        )
    found = _as_in_files(weights)
    return {name: found[name].float() for name in names}


def _copy_part(source: Path, target: Path, *, weights: bool) -> None:
    """The files of one part as they are; of its weights only those that diffusers loads unasked.

    Not copied: hidden files, such as a hub's cache; pickles that have a safetensors twin; a variant (fp16)
    beside the plain file. A variant that stands alone takes the plain name.
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
    """A part stored in half precision is loaded in fp32, like the trained one, unless told otherwise.

    diffusers does so by itself; transformers takes the type that the configuration names, and the two
    would not fit together.
    """
    values = json.loads(config.read_text()) if config.is_file() else {}
    half = {key: "float32" for key in ("dtype", "torch_dtype") if "float16" in str(values.get(key))}
    if half:
        config.write_text(json.dumps({**values, **half}, indent=2) + "\n")


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Moves each item over its predecessor, the index last: without it nothing loads half of a result."""
    items = sorted(temporary.iterdir(), key=lambda item: item.name in (INDEX_FILE, LORA_FILE))
    (folder / INDEX_FILE).unlink(missing_ok=True)
    for item in items:
        target = folder / item.name
        if target.is_dir():
            shutil.rmtree(target)
        item.replace(target)
    temporary.rmdir()
