"""Names of other programs: WebUI, ComfyUI and the like read a LoRA in kohya's layout, and whole models in the layout of
the original Stable Diffusion (sdjob/model/key_names.py).

Pure: from tensors by one name to tensors by another.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from sdjob.model.key_names import V_PREDICTION, ZERO_SNR, OriginalTensor

Weights = dict[str, torch.Tensor]


def kohya_lora(prefix: str, layers: Mapping[str, torch.Tensor], alpha: float) -> Weights:
    """A LoRA of one part by peft's names (`….lora_A.weight`) → by kohya's, with the alpha of each layer.

    prefix: of the part, such as `lora_unet`. diffusers' convert_state_dict_to_kohya takes the rank for alpha.
    """
    renamed: Weights = {}
    for name, weight in layers.items():
        layer, matrix = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name).groups()  # type: ignore[union-attr]
        key = f"{prefix}_{layer.replace('.', '_')}"
        renamed[f"{key}.lora_{'down' if matrix == 'A' else 'up'}.weight"] = weight
        renamed[f"{key}.alpha"] = torch.tensor(float(alpha))
    return renamed


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
        "modelspec.prediction_type": "v" if v_prediction else "epsilon",
    }
    side = configs["denoiser"].get("sample_size")
    if isinstance(side, int):
        pixels = side * 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
        values["modelspec.resolution"] = f"{pixels}x{pixels}"
    return values


def marks(scheduler: Mapping[str, Any]) -> Weights:
    """Empty tensors by which programs that read no metadata recognize what the model predicts."""
    names = []
    if scheduler.get("prediction_type") == "v_prediction":
        names.append(V_PREDICTION)
        if scheduler.get("rescale_betas_zero_snr"):
            names.append(ZERO_SNR)
    return {name: torch.zeros(0) for name in names}
