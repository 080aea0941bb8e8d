"""Names of other trainers and the settings they probably mean: only suggested, since some differ in meaning."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

KOHYA = "kohya"
DIFFUSERS = "diffusers"

# Our name → its names in other trainers, except those that are accepted aliases.
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "lora_rank": {KOHYA: ("network_dim",), DIFFUSERS: ("rank",)},
    "lora_alpha": {KOHYA: ("network_alpha",)},
    "lr": {KOHYA: ("unet_lr",)},
    "optimizer": {KOHYA: ("optimizer_type",)},
    "lr_num_cycles": {KOHYA: ("lr_scheduler_num_cycles",)},
    "lr_power": {KOHYA: ("lr_scheduler_power",)},
    "checkpointing_steps": {KOHYA: ("save_every_n_steps", "save_every_n_epochs")},
    "checkpoints_total_limit": {KOHYA: ("save_last_n_steps", "save_last_n_epochs")},
    "validation_prompts": {KOHYA: ("sample_prompts",)},
    "validation_steps": {
        KOHYA: ("sample_every_n_steps", "sample_every_n_epochs"),
        DIFFUSERS: ("validation_epochs",),
    },
    "random_flip": {KOHYA: ("flip_aug",)},
    "cache_latents": {KOHYA: ("cache_latents_to_disk",)},
    "cache_text_embeddings": {
        KOHYA: ("cache_text_encoder_outputs_to_disk",),
        DIFFUSERS: ("pre_compute_text_embeddings",),
    },
    "dataloader_num_workers": {KOHYA: ("max_data_loader_n_workers",)},
    "attention": {KOHYA: ("xformers", "sdpa")},
}

# Our name → shorter names that users try.
_SHORT = {
    "num_train_step": ("steps", "num_steps", "train_steps"),
    "batch_size": ("batch",),
    "lr_warmup_steps": ("lr_warmup", "warmup_steps", "warmup"),
    "gradient_accumulation_steps": ("grad_accum", "gradient_accumulation", "accumulation_steps"),
    "checkpointing_steps": ("save_every",),
    "snr_gamma": ("snr", "min_snr"),
    "adam_weight_decay": ("weight_decay",),
    "max_grad_norm": ("clip_grad_norm", "gradient_clipping"),
    "use_ema": ("ema",),
    "lora_rank": ("lora",),
    "instance_prompt": ("prompt",),
    "resolution": ("image_size",),
    "dataloader_num_workers": ("num_workers",),
}


@cache
def probably() -> dict[str, str]:
    """Name elsewhere → our name."""
    theirs = ((ours, name) for ours, by in NAMES.items() for names in by.values() for name in names)
    short = ((ours, name) for ours, names in _SHORT.items() for name in names)
    return {name: ours for ours, name in (*theirs, *short)}


def table(titles: Iterable[str]) -> str:
    """NAMES as a table, for users of these trainers."""
    rows = (
        " | ".join([f"`{ours}`", *(_cell(by.get(trainer, ())) for trainer in (KOHYA, DIFFUSERS))])
        for ours, by in NAMES.items()
    )
    lines = (f"| {row} |" for row in rows)
    return "\n".join([f"| {' | '.join(titles)} |", "|---|---|---|", *lines]) + "\n"


def _cell(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"
