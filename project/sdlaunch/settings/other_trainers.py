"""Names of other trainers and the settings they probably mean: only suggested, since some differ in meaning."""

from __future__ import annotations

from functools import cache

# Our name → its names in kohya's sd-scripts, except those that are accepted aliases.
KOHYA: dict[str, tuple[str, ...]] = {
    "lora_rank": ("network_dim",),
    "lora_alpha": ("network_alpha",),
    "lr": ("unet_lr",),
    "optimizer": ("optimizer_type",),
    "lr_num_cycles": ("lr_scheduler_num_cycles",),
    "lr_power": ("lr_scheduler_power",),
    "checkpointing_steps": ("save_every_n_steps", "save_every_n_epochs"),
    "checkpoints_total_limit": ("save_last_n_steps", "save_last_n_epochs"),
    "validation_prompts": ("sample_prompts",),
    "validation_steps": ("sample_every_n_steps", "sample_every_n_epochs"),
    "random_flip": ("flip_aug",),
    "cache_latents": ("cache_latents_to_disk",),
    "cache_text_embeddings": ("cache_text_encoder_outputs_to_disk",),
    "dataloader_num_workers": ("max_data_loader_n_workers",),
    "attention": ("xformers", "sdpa"),
    "report_to": ("log_with",),
    "tracker_project_name": ("log_tracker_name",),
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
    return {name: ours for ours, names in (*KOHYA.items(), *_SHORT.items()) for name in names}
