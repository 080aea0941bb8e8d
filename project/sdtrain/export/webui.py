"""Names of other programs: WebUI, ComfyUI and the like read a LoRA in kohya's layout, and whole models in the layout of
the original Stable Diffusion (sdjob/model/key_names.py).

From tensors by one name to tensors by another, and what a header says of them.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from sdjob.model.key_names import V_PREDICTION, ZERO_SNR, OriginalTensor

HASH = "modelspec.hash_sha256"
Weights = dict[str, torch.Tensor]


_KOHYA = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
MAGNITUDE = "lora_magnitude_vector"


def layer_of(name: str) -> str:
    """The layer of a LoRA's tensor by peft's names."""
    return re.sub(rf"\.(?:lora_[AB]\.weight|{MAGNITUDE})$", "", name)


def kohya_lora(names: Mapping[str, str], layers: Mapping[str, torch.Tensor], scale: float) -> Weights:
    """A LoRA of one part by peft's names (`….lora_A.weight`) → by kohya's, with the alpha of each layer.

    names: layer → its name there (key_names.kohya_layers). scale: what B A is multiplied by, which is alpha / rank
    there; diffusers' convert_state_dict_to_kohya takes the rank for alpha. The magnitudes of DoRA are [outputs, 1, …],
    as LyCORIS, WebUI and ComfyUI read them.
    """
    renamed: Weights = {}
    for name, weight in layers.items():
        layer = layer_of(name)
        key, matrix = names[layer], name.removeprefix(f"{layer}.")
        if matrix == MAGNITUDE:
            others = layers[f"{layer}.lora_B.weight"].dim() - 1
            renamed[f"{key}.dora_scale"] = weight.reshape(-1, *[1] * others)
            continue
        renamed[f"{key}.{_KOHYA[matrix]}"] = weight
        rank = layers[f"{layer}.lora_A.weight"].shape[0]
        renamed[f"{key}.alpha"] = torch.tensor(float(scale * rank))
    return renamed


def kohya_metadata(version: str, config: Any, scale: float, name: str) -> dict[str, str]:
    """By which kohya's programs and WebUI recognize a LoRA and its base model.

    version: as kohya's trainer names the base model, "sd_v1", "sd_v2_v", "sdxl_base_v1-0".
    """
    return {
        "ss_base_model_version": version,
        "ss_v2": str(version.startswith("sd_v2")),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.r),
        "ss_network_alpha": f"{scale * config.r:g}",
        "ss_output_name": name,
    }


def original(names: Mapping[str, OriginalTensor], weights: Mapping[str, torch.Tensor]) -> Weights:
    """The weights of a part by diffusers' names → by those of the original Stable Diffusion."""
    renamed: Weights = {}
    thirds: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
    for name, original_tensor in names.items():
        weight = weights[name]
        if original_tensor.transposed:
            weight = weight.T
        if original_tensor.pixelwise and weight.dim() == 2:
            weight = weight[:, :, None, None]
        if original_tensor.third is None:
            renamed[original_tensor.name] = weight
        else:
            thirds[original_tensor.name][original_tensor.third] = weight
    return renamed | {name: torch.cat([three[0], three[1], three[2]]) for name, three in thirds.items()}


def metadata(architecture: str, configs: Mapping[str, Mapping[str, Any]], title: str) -> dict[str, str]:
    """The metadata of a single file, by which programs recognize it (github.com/Stability-AI/ModelSpec).

    architecture: by its name there. configs: of denoiser, vae and scheduler.
    """
    v_prediction = configs["scheduler"].get("prediction_type") == "v_prediction"
    values = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        HASH: "0x" + 64 * "0",  # the file's, once it is written (seal)
        "modelspec.prediction_type": "v" if v_prediction else "epsilon",
    }
    side = configs["denoiser"].get("sample_size")
    if isinstance(side, int):
        pixels = side * 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
        values["modelspec.resolution"] = f"{pixels}x{pixels}"
    return values


def seal(file: Path) -> None:
    """Put the SHA-256 of a file's tensors, all bytes after the header, where its metadata has the place for it."""
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length)
        digest = hashlib.sha256()
        while block := opened.read(1 << 22):
            digest.update(block)
        opened.seek(8)
        opened.write(header.replace(b"0x" + 64 * b"0", f"0x{digest.hexdigest()}".encode(), 1))


def marks(scheduler: Mapping[str, Any]) -> Weights:
    """Empty tensors by which programs that read no metadata recognize what the model predicts."""
    names = []
    if scheduler.get("prediction_type") == "v_prediction":
        names.append(V_PREDICTION)
        if scheduler.get("rescale_betas_zero_snr"):
            names.append(ZERO_SNR)
    return {name: torch.zeros(0) for name in names}
