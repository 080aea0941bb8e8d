"""Flags of kohya's sd-scripts that have no counterpart here, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sdjob.settings.diffusers_flags import Unsupported
from sdjob.settings.fields import OFF


def _same(remedy: str, *accepted: str) -> Unsupported:
    """A flag that the weights do not depend on."""
    return Unsupported(remedy, (*OFF, *accepted), keeps_result=True)


def _other(remedy: str, *accepted: str) -> Unsupported:
    return Unsupported(remedy, (*OFF, "", *accepted))


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

KOHYA_UNSUPPORTED: Mapping[str, Unsupported] = MappingProxyType(
    {
        **dict.fromkeys(("output_name", "save_model_as", "use_safetensors", "no_metadata"), _same(_PLACES)),
        "training_comment": _same(_PLACES),
        **dict.fromkeys(
            ("logging_dir", "log_prefix", "log_tracker_config", "log_config"),
            _same(_LOGS),
        ),
        "wandb_run_name": _same(_LOGS),
        "wandb_api_key": _same("Remove it, and set the variable WANDB_API_KEY."),
        **dict.fromkeys(
            (
                "huggingface_repo_type",
                "huggingface_path_in_repo",
                "huggingface_token",
                "huggingface_repo_visibility",
                "async_upload",
                "save_state_to_huggingface",
            ),
            _same(_UPLOAD),
        ),
        **dict.fromkeys(
            (
                "lowram",
                "highvram",
                "fp8_base",
                "fp8_base_unet",
                "fused_backward_pass",
                "fused_optimizer_groups",
                "blocks_to_swap",
                "cpu_offload_checkpointing",
                "mem_eff_attn",
            ),
            _same(_MEMORY),
        ),
        **dict.fromkeys(
            (
                "persistent_data_loader_workers",
                "vae_batch_size",
                "text_encoder_batch_size",
                "cache_info",
                "skip_cache_check",
                "disable_mmap_load_safetensors",
                "tokenizer_cache_dir",
            ),
            _same(_READING),
        ),
        "v2": _same("The architecture is read from the model."),
        "no_half_vae": _same(
            "NaN or infinite values are found where they occur; the VAE of XL computes in fp32."
        ),
        "save_state": _same("Checkpoints hold the whole state in any case."),
        "save_state_on_train_end": _same("Checkpoints hold the whole state in any case."),
        "save_last_n_epochs_state": _same("Checkpoints hold the whole state in any case."),
        "save_last_n_steps_state": _same("Checkpoints hold the whole state in any case."),
        "save_n_epoch_ratio": _same("Use checkpointing_steps."),
        "sample_at_first": _same("Samples are generated before the first step in any case."),
        "sample_sampler": _same("Samples are generated with the scheduler in the model's folder scheduler."),
        "validation_seed": _same("seed selects what is held out."),
        "full_fp16": _same(
            "Trainable weights stay fp32; mixed_precision=fp16 is the type of the computation."
        ),
        "full_bf16": _same(
            "Trainable weights stay fp32; mixed_precision=bf16 is the type of the computation."
        ),
        "dynamo_backend": _same("It changes the speed only."),
        "ddp_timeout": _same("hang_timeout ends a job that makes no progress."),
        "ddp_gradient_as_bucket_view": _same("It changes the speed only."),
        "ddp_static_graph": _same("It changes the speed only."),
        "debug_dataset": _same("See samples/inputs.png: the first training images as the trainer sees them."),
        "output_config": _same("See run/plan.json and run/spec.yaml."),
        "min_bucket_reso": _same(_BUCKETS),
        "max_bucket_reso": _same(_BUCKETS),
        "bucket_no_upscale": _other("Small images are enlarged: leave them out, or lower resolution."),
        "resize_interpolation": _other("Set image_interpolation_mode."),
        **dict.fromkeys(("shuffle_caption", "enable_wildcard", "weighted_captions"), _other(_CAPTIONS)),
        **dict.fromkeys(("keep_tokens", "caption_prefix", "caption_suffix"), _other(_CAPTIONS)),
        **dict.fromkeys(("keep_tokens_separator", "secondary_separator"), _other(_CAPTIONS)),
        "caption_separator": _same("It matters only where captions are shuffled.", ","),
        "caption_dropout_every_n_epochs": _other("Use proportion_empty_prompts."),
        "caption_tag_dropout_rate": _other(
            "Use proportion_empty_prompts, which drops whole captions.", "0.0"
        ),
        "token_warmup_min": _other(_CAPTIONS, "1"),
        "token_warmup_step": _other(_CAPTIONS),
        **dict.fromkeys(("color_aug", "face_crop_aug_range"), _other(_AUGMENTATION)),
        **dict.fromkeys(("alpha_mask", "masked_loss", "conditioning_data_dir"), _other(_LOSS)),
        "loss_type": _other(_LOSS, "l2"),
        **dict.fromkeys(
            ("huber_c", "huber_scale", "huber_schedule"), _same("Used only with loss_type=huber.")
        ),
        **dict.fromkeys(("debiased_estimation_loss", "scale_v_pred_loss_like_noise_pred"), _other(_LOSS)),
        "v_pred_like_loss": _other(_LOSS),
        **dict.fromkeys(("multires_noise_iterations", "adaptive_noise_scale"), _other(_NOISE)),
        "multires_noise_discount": _same("Used only with multires_noise_iterations."),
        **dict.fromkeys(("noise_offset_random_strength", "ip_noise_gamma_random_strength"), _other(_NOISE)),
        "min_timestep": _other("Timesteps are sampled from all."),
        "max_timestep": _other("Timesteps are sampled from all.", "1000"),
        "clip_skip": _other("The text encoder's output is the one that the model was trained with.", "1"),
        "no_token_padding": _other("Prompts are padded, as the model was trained."),
        **dict.fromkeys(("lr_scheduler_args", "lr_scheduler_type", "lr_decay_steps"), _other(_SCHEDULE)),
        **dict.fromkeys(("lr_scheduler_timescale", "lr_scheduler_min_lr_ratio"), _other(_SCHEDULE)),
        "use_lion_optimizer": _other("Choose an optimizer of this project: optimizer."),
        "scale_weight_norms": _other("Norms of a LoRA are not limited; max_grad_norm clips gradients."),
        "block_lr": _other("All layers of the denoiser have one learning rate, lr."),
        "learning_rate_te2": _other("Both text encoders have one learning rate, text_encoder_lr."),
        "network_train_text_encoder_only": _other("The denoiser is always trained."),
        "dim_from_weights": _other("Set lora_rank to the rank of the file."),
        "base_weights": _other("Merge it into the model first."),
        "base_weights_multiplier": _other("Merge it into the model first."),
        **dict.fromkeys(("initial_epoch", "initial_step", "skip_until_initial_step"), _other("Use resume.")),
        "resume_from_huggingface": _other("A state of another trainer cannot be continued."),
        "in_json": _other("Write metadata.jsonl with file_name and text, next to the images."),
        "metadata_file": _other("Write metadata.jsonl with file_name and text, next to the images."),
        "dataset_class": _other("Datasets are recognized by their content."),
        **dict.fromkeys(("weighting_scheme", "logit_mean", "logit_std", "mode_scale"), _same(_OTHER_MODELS)),
    }
)
