"""Flags of kohya's sd-scripts that have no counterpart here, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping

from sdjob.settings.diffusers_flags import Unsupported
from sdjob.settings.fields import OFF


def _same(names: str, remedy: str, *accepted: str) -> dict[str, Unsupported]:
    """Flags that the weights do not depend on."""
    return dict.fromkeys(names.split(), Unsupported(remedy, (*OFF, *accepted), keeps_result=True))


def _other(names: str, remedy: str, *accepted: str) -> dict[str, Unsupported]:
    return dict.fromkeys(names.split(), Unsupported(remedy, (*OFF, "", *accepted)))


_PLACES = "The result, its name and its layouts are fixed: see the folder checkpoint of the output folder."
_LOGS = "Trackers are those of report_to; run/metrics.jsonl is written in any case."
_UPLOAD = "Set publish=hub:USER/NAME; new repositories are private."
_MEMORY = "It saves memory only: gradient_checkpointing, cpu_offload and plugin=fsdp do so here."
_READING = "Nothing to set: images and caches are read in batches of a size that fits."
_CAPTIONS = "Captions are used as they are written: change the files."
_LOSS = "The loss is the mean squared error, weighted by snr_gamma if that is set."
_NOISE = "Of these only noise_offset and input_perturbation are implemented."
_SCHEDULE = "Schedules are those of lr_scheduler, with lr_warmup_steps, lr_num_cycles and lr_power."
_AUGMENTATION = "Images are only cropped, and mirrored with random_flip: change the files."
_BUCKETS = "The sides of buckets follow from resolution and bucket_reso_steps."
_OTHER_MODELS = "It is for models that are not supported, or not for training."
_WHOLE_STATE = "Checkpoints hold the whole state in any case."
_METADATA = "Write metadata.jsonl with file_name and text, next to the images."

KOHYA_UNSUPPORTED: Mapping[str, Unsupported] = {
    **_same("output_name save_model_as use_safetensors no_metadata training_comment", _PLACES),
    **_same("logging_dir log_prefix log_tracker_config log_config wandb_run_name", _LOGS),
    **_same("wandb_api_key", "Remove it, and set the variable WANDB_API_KEY."),
    **_same("huggingface_repo_type huggingface_path_in_repo huggingface_token", _UPLOAD),
    **_same("huggingface_repo_visibility async_upload save_state_to_huggingface", _UPLOAD),
    **_same("lowram highvram fp8_base fp8_base_unet fused_backward_pass", _MEMORY),
    **_same("fused_optimizer_groups blocks_to_swap cpu_offload_checkpointing mem_eff_attn", _MEMORY),
    **_same("persistent_data_loader_workers vae_batch_size text_encoder_batch_size", _READING),
    **_same("cache_info skip_cache_check disable_mmap_load_safetensors tokenizer_cache_dir", _READING),
    **_same("v2", "The architecture is read from the model."),
    **_same(
        "no_half_vae", "NaN or infinite values are found where they occur; the VAE of XL computes in fp32."
    ),
    **_same("save_state save_state_on_train_end save_last_n_epochs_state", _WHOLE_STATE),
    **_same("save_last_n_steps_state", _WHOLE_STATE),
    **_same("save_n_epoch_ratio", "Use checkpointing_steps."),
    **_same("sample_at_first", "Samples are generated before the first step in any case."),
    **_same("sample_sampler", "Samples are generated with the scheduler in the model's folder scheduler."),
    **_same("validation_seed", "seed selects what is held out."),
    **_same("full_fp16", "Trainable weights stay fp32; mixed_precision=fp16 is the type of the computation."),
    **_same("full_bf16", "Trainable weights stay fp32; mixed_precision=bf16 is the type of the computation."),
    **_same("dynamo_backend", "It changes the speed only."),
    **_same("ddp_timeout", "hang_timeout ends a job that makes no progress."),
    **_same("ddp_gradient_as_bucket_view ddp_static_graph", "It changes the speed only."),
    **_same("debug_dataset", "See samples/inputs.png: the first training images as the trainer sees them."),
    **_same("output_config", "See run/plan.json and run/spec.yaml."),
    **_same("min_bucket_reso max_bucket_reso", _BUCKETS),
    **_other("bucket_no_upscale", "Small images are enlarged: leave them out, or lower resolution."),
    **_other("resize_interpolation", "Set image_interpolation_mode."),
    **_other("shuffle_caption enable_wildcard weighted_captions keep_tokens", _CAPTIONS),
    **_other("caption_prefix caption_suffix keep_tokens_separator secondary_separator", _CAPTIONS),
    **_same("caption_separator", "It matters only where captions are shuffled.", ","),
    **_other("caption_dropout_every_n_epochs", "Use proportion_empty_prompts."),
    **_other("caption_tag_dropout_rate", "Use proportion_empty_prompts, which drops whole captions.", "0.0"),
    **_other("token_warmup_min", _CAPTIONS, "1"),
    **_other("token_warmup_step", _CAPTIONS),
    **_other("color_aug face_crop_aug_range", _AUGMENTATION),
    **_other("alpha_mask masked_loss conditioning_data_dir", _LOSS),
    **_other("loss_type", _LOSS, "l2"),
    **_same("huber_c huber_scale huber_schedule", "Used only with loss_type=huber."),
    **_other("debiased_estimation_loss scale_v_pred_loss_like_noise_pred v_pred_like_loss", _LOSS),
    **_other("multires_noise_iterations adaptive_noise_scale", _NOISE),
    **_same("multires_noise_discount", "Used only with multires_noise_iterations."),
    **_other("noise_offset_random_strength ip_noise_gamma_random_strength", _NOISE),
    **_other("min_timestep", "Timesteps are sampled from all."),
    **_other("max_timestep", "Timesteps are sampled from all.", "1000"),
    **_other("clip_skip", "The text encoder's output is the one that the model was trained with.", "1"),
    **_other("no_token_padding", "Prompts are padded, as the model was trained."),
    **_other("lr_scheduler_args lr_scheduler_type lr_decay_steps", _SCHEDULE),
    **_other("lr_scheduler_timescale lr_scheduler_min_lr_ratio", _SCHEDULE),
    **_other("use_lion_optimizer", "Choose an optimizer of this project: optimizer."),
    **_other("scale_weight_norms", "Norms of a LoRA are not limited; max_grad_norm clips gradients."),
    **_other("block_lr", "All layers of the denoiser have one learning rate, lr."),
    **_other("learning_rate_te2", "Both text encoders have one learning rate, text_encoder_lr."),
    **_other("network_train_text_encoder_only", "The denoiser is always trained."),
    **_other("dim_from_weights", "Set lora_rank to the rank of the file."),
    **_other("base_weights base_weights_multiplier", "Merge it into the model first."),
    **_other("initial_epoch initial_step skip_until_initial_step", "Use resume."),
    **_other("resume_from_huggingface", "A state of another trainer cannot be continued."),
    **_other("in_json metadata_file", _METADATA),
    **_other("dataset_class", "Datasets are recognized by their content."),
    **_same("weighting_scheme logit_mean logit_std mode_scale", _OTHER_MODELS),
}
