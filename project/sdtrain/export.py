"""The result: a complete pipeline, or a LoRA, that diffusers loads as it stands."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from sdjob.pipeline import PipelineFolder
from sdtrain.checkpoint import sync_tree
from sdtrain.models import Parts

LORA_FILE = "pytorch_lora_weights.safetensors"
INDEX_FILE = "model_index.json"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".onnx", ".pb")


def is_exported(folder: Path, *, lora: bool) -> bool:
    """Whether the result is there; its last file is put in place last."""
    return (folder / (LORA_FILE if lora else INDEX_FILE)).is_file()


def export(
    folder: Path, source: PipelineFolder, parts: Parts, state: dict[str, torch.Tensor], *, lora: bool
) -> None:
    """Writes the result into `folder`, beside the step folders; whole or not at all. By one rank.

    `state`: the trained weights by name, fp32. The frozen parts are copied as they are, byte by byte.
    """
    temporary = folder / ".export.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if lora:
        _write_lora(temporary, parts, state)
    else:
        _write_pipeline(temporary, source, parts, state)
    sync_tree(temporary)
    _put_in_place(temporary, folder)


def _write_lora(folder: Path, parts: Parts, state: dict[str, torch.Tensor]) -> None:
    layers = get_peft_model_state_dict(parts.unet, state_dict=state)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=convert_state_dict_to_diffusers(layers),
        unet_lora_adapter_metadata=parts.unet.peft_config["default"].to_dict(),
        weight_name=LORA_FILE,
    )


def _write_pipeline(
    folder: Path, source: PipelineFolder, parts: Parts, state: dict[str, torch.Tensor]
) -> None:
    for item in sorted(source.path.iterdir()):
        if item.is_dir() and not item.name.startswith(".") and item.name != "unet":
            shutil.copytree(item, folder / item.name, ignore=_unneeded, copy_function=shutil.copyfile)
        elif item.name == INDEX_FILE:
            shutil.copyfile(item, folder / INDEX_FILE)
    parts.unet.save_config(folder / "unet")
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def _unneeded(folder: str, names: list[str]) -> set[str]:
    """Pickles that have a safetensors twin, and hidden files such as a hub's cache."""
    has_safetensors = any(name.endswith(".safetensors") for name in names)
    return {
        name for name in names if name.startswith(".") or (has_safetensors and Path(name).suffix in _PICKLES)
    }


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
