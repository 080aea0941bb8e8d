"""The training scripts whose flags are known, and their defaults that differ from ours and change the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Script:
    """A script of another trainer."""

    trainer: str  # a key of trainers.TRAINERS
    recipe: str
    defaults: Mapping[str, str] = field(default_factory=dict)  # our names


_DIFFUSERS = {"lr_warmup_steps": "500", "mixed_precision": "no"}
_DREAMBOOTH = {**_DIFFUSERS, "batch_size": "4", "epoch": "1", "lr": "5e-6"}
_CAPTIONED = {**_DIFFUSERS, "batch_size": "16", "epoch": "100", "lr": "1e-4"}
_LORA = {"lora_rank": "4"}
_XL = {"resolution": "1024"}
_NO_DECAY = {"adam_weight_decay": "0"}  # kohya: of optimizers other than AdamW (translate.py)
_BILINEAR = {"image_interpolation_mode": "bilinear"}

# The linear layers and 1×1 convolutions of the transformer blocks, which networks.lora of kohya trains.
_KOHYA_LAYERS = "to_q,to_k,to_v,to_out.0,ff.net.0.proj,ff.net.2,proj_in,proj_out"
_KOHYA = {"lr": "2e-6", "num_train_step": "1600", "center_crop": "1", "mixed_precision": "no", **_NO_DECAY}
_BOTH = {"train_text_encoder": "1"}  # the text encoders are trained unless a flag says otherwise
KOHYA_LORA = {**_KOHYA, **_BOTH, "lora_rank": "4", "lora_alpha": "1", "lora_target_modules": _KOHYA_LAYERS}

SCRIPTS: Mapping[str, Script] = {
    "train_dreambooth": Script("diffusers", "dreambooth", {**_DREAMBOOTH, **_BILINEAR}),
    "train_dreambooth_lora": Script("diffusers", "dreambooth", {**_DREAMBOOTH, **_LORA, "lr": "5e-4"}),
    "train_dreambooth_lora_sdxl": Script(
        "diffusers",
        "dreambooth",
        {**_DREAMBOOTH, **_LORA, **_XL, "lr": "1e-4", "adam_weight_decay": "1e-4"},
    ),
    "train_text_to_image": Script("diffusers", "text_to_image", _CAPTIONED),
    "train_text_to_image_lora": Script("diffusers", "text_to_image", {**_CAPTIONED, **_LORA}),
    "train_text_to_image_sdxl": Script("diffusers", "text_to_image", {**_CAPTIONED, **_XL}),
    "train_text_to_image_lora_sdxl": Script("diffusers", "text_to_image", {**_CAPTIONED, **_LORA, **_XL}),
    "train_dreambooth_colossalai": Script(
        "Colossal-AI", "dreambooth", {**_DREAMBOOTH, **_BILINEAR, **_NO_DECAY}
    ),
    "train_network": Script("kohya", "text_to_image", KOHYA_LORA),
    "sdxl_train_network": Script("kohya", "text_to_image", KOHYA_LORA),
    "train_db": Script("kohya", "text_to_image", {**_KOHYA, **_BOTH}),
    "fine_tune": Script("kohya", "text_to_image", _KOHYA),
    "sdxl_train": Script("kohya", "text_to_image", _KOHYA),
}
