"""The keys of other programs: WebUI, ComfyUI and the like read a LoRA in kohya's layout, and whole models in the
layout of the original Stable Diffusion (sdjob/model/key_names.py).

Pure: from tensors by one name to tensors by another.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from sdjob.model.key_names import V_PREDICTION, ZERO_SNR, is_open_clip, places
from sdjob.model.shapes import todays_name

Weights = dict[str, torch.Tensor]


def kohya_lora(prefix: str, layers: Mapping[str, torch.Tensor], alpha: float) -> Weights:
    """A LoRA of one part by peft's names (`….lora_A.weight`) → by kohya's, with the alpha of each layer.

    prefix: of the part, such as `lora_unet`.
    """
    found: Weights = {}
    for name, weight in layers.items():
        layer, matrix = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name).groups()  # type: ignore[union-attr]
        key = f"{prefix}_{layer.replace('.', '_')}"
        found[f"{key}.lora_{'down' if matrix == 'A' else 'up'}.weight"] = weight
        found[f"{key}.alpha"] = torch.tensor(float(alpha))
    return found


def original(
    part: str, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], *, xl: bool
) -> Weights:
    """A part of a pipeline by diffusers' names → by those of the original Stable Diffusion."""
    named = {todays_name(name): weight for name, weight in weights.items()}
    found: Weights = {}
    thirds: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
    for name, place in places(part, config, named, xl=xl).items():
        weight = named[name]
        if place.transposed:
            weight = weight.T
        if place.pixelwise and weight.dim() == 2:
            weight = weight[:, :, None, None]
        if place.third is None:
            found[place.name] = weight
        else:
            thirds[place.name][place.third] = weight
    return found | {name: torch.cat([three[0], three[1], three[2]]) for name, three in thirds.items()}


def about_model(config_of: Mapping[str, Mapping[str, Any]], title: str, *, xl: bool) -> dict[str, str]:
    """The metadata of a single file, by which programs tell what is in it (github.com/Stability-AI/ModelSpec).

    `config_of`: configurations of unet, vae, text_encoder and scheduler.
    """
    unet, scheduler = config_of["unet"], config_of["scheduler"]
    v_prediction = scheduler.get("prediction_type") == "v_prediction"
    architecture = "stable-diffusion-v1"
    if xl:
        architecture = "stable-diffusion-xl-v1-base"
    elif is_open_clip(config_of["text_encoder"]):
        architecture = f"stable-diffusion-v2-{'768-v' if v_prediction else '512'}"
    side = unet.get("sample_size")
    factor = 2 ** (len(config_of["vae"]["block_out_channels"]) - 1)
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.prediction_type": "v" if v_prediction else "epsilon",
        **({"modelspec.resolution": f"{side * factor}x{side * factor}"} if isinstance(side, int) else {}),
    }


def marks(scheduler: Mapping[str, Any]) -> Weights:
    """Tensors without content, by which programs that read no metadata tell how the U-Net predicts."""
    names = []
    if scheduler.get("prediction_type") == "v_prediction":
        names.append(V_PREDICTION)
        if scheduler.get("rescale_betas_zero_snr"):
            names.append(ZERO_SNR)
    return {name: torch.zeros(0) for name in names}
