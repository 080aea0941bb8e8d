"""Settings that are allowed and probably not meant: they do nothing in this run, or undo what is trained."""

from __future__ import annotations

from sdjob.settings import recipes
from sdjob.settings.run_spec import RunSpec

_HIGH = 1e-3  # learning rates of AdamW beyond this one destroy what the weights have learned
_HIGH_FOR_LORA = 1e-2

_OF_PRIOR = ("class_prompt", "prior_loss_weight", "num_class_images", "class_data_dir")


def without_effect(spec: RunSpec) -> list[str]:
    """A sentence for each group of settings that were changed from their default and do nothing in this run."""
    holds_out = spec.validation_data_dir or spec.validation_split
    unused = (
        (not spec.with_prior_preservation, "with_prior_preservation=1", _OF_PRIOR),
        (not spec.lora_rank, "lora_rank above 0", ("lora_alpha", "lora_target_modules")),
        (not spec.aspect_ratio_buckets, "aspect_ratio_buckets=1", ("bucket_reso_steps",)),
        (not spec.use_ema, "use_ema=1", ("ema_decay",)),
        (spec.bad_samples != "skip", "bad_samples=skip", ("max_bad_samples",)),
        (spec.on_nan != "skip", "on_nan=skip", ("max_nan_steps",)),
        (spec.lora_rank > 0, "lora_rank=0", ("export_single_file",)),
        (not spec.validation_prompts, "validation_prompts", ("num_validation_images",)),
        (not holds_out, "validation_data_dir or validation_split", ("max_validation_samples",)),
        (
            not spec.validation_prompts and not holds_out,
            "validation_prompts, validation_data_dir or validation_split",
            ("validation_steps",),
        ),
        (
            spec.lr_scheduler != "cosine_with_restarts",
            "lr_scheduler=cosine_with_restarts",
            ("lr_num_cycles",),
        ),
        (spec.lr_scheduler != "polynomial", "lr_scheduler=polynomial", ("lr_power",)),
        (
            spec.optimizer == "adafactor",
            "an optimizer of Adam's kind",
            ("adam_beta1", "adam_beta2", "adam_epsilon"),
        ),
        (not spec.train_text_encoder, "train_text_encoder=1", ("text_encoder_lr",)),
        (
            spec.concepts_list is not None,
            "leaving concepts_list empty",
            ("instance_prompt", "class_prompt", "class_data_dir"),
        ),
        (not spec.recipe_facts.has_subjects, recipes.with_subjects(), ("instance_prompt",)),
        (not spec.timed_step, "timed_step", ("reference_loss",)),
    )
    fields = RunSpec.model_fields
    found: list[str] = []
    if spec.num_train_epochs and "max_train_steps" in spec.model_fields_set:
        found.append("epoch: no effect beside num_train_step, which counts")
    for idle, needed, names in unused:
        changed = [name for name in names if getattr(spec, name) != fields[name].default] if idle else []
        if changed:
            found.append(f"{', '.join(changed)}: no effect without {needed}")
    return found


def high_rates(spec: RunSpec) -> list[str]:
    """A sentence for each learning rate that is far above what such runs use."""
    if spec.optimizer in ("prodigy", "adafactor"):  # whose rates mean something else
        return []
    limit, usual = (_HIGH_FOR_LORA, "1e-4") if spec.lora_rank else (_HIGH, "5e-6 to 1e-5")
    rates = {"lr": spec.learning_rate, "text_encoder_lr": spec.text_encoder_lr or 0.0}
    what = "a LoRA" if spec.lora_rank else "a full fine-tune"
    return [
        f"{name}: {rate:g} is very high for {what}, which is usually trained with {usual}: it may only destroy"
        for name, rate in rates.items()
        if rate > limit
    ]
