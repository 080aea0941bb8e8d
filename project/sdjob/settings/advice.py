"""Settings that are allowed but probably not intended: they have no effect, or a learning rate is far too high."""

from __future__ import annotations

from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.recipes import with_captions, with_subjects
from sdjob.settings.run_spec import RunSpec

_HIGH = 1e-3  # AdamW's learning rates beyond this one destroy what the weights have learned
_HIGH_FOR_LORA = 1e-2

_OF_LORA = ("lora_alpha", "lora_target_modules", "lora_dropout", "use_dora", "use_rslora")


def without_effect(spec: RunSpec) -> list[str]:
    """A sentence for each group of settings that differ from their defaults and have no effect in this run."""
    holds_out = spec.validation_data_dir or spec.validation_split
    validates = holds_out or spec.validation_prompts
    prior = ("class_prompt", "prior_loss_weight", "num_class_images", "class_data_dir")
    of_one_subject = ("instance_prompt", "class_prompt", "class_data_dir")
    generates = spec.validation_prompts or (spec.with_prior_preservation and not spec.class_data_dir)
    of_samples = ("num_inference_steps", "guidance_scale", "sample_batch_size")
    schedule, facts = spec.lr_scheduler, OPTIMIZERS[spec.optimizer]
    needs = (
        (spec.with_prior_preservation, "with_prior_preservation=1", prior),
        (spec.lora_rank, "lora_rank above 0", _OF_LORA),
        (spec.aspect_ratio_buckets, "aspect_ratio_buckets=1", ("bucket_reso_steps",)),
        (spec.use_ema, "use_ema=1", ("ema_decay",)),
        (spec.bad_samples == "skip", "bad_samples=skip", ("max_bad_samples",)),
        (spec.on_nan == "skip", "on_nan=skip", ("max_nan_steps",)),
        (not spec.lora_rank, "lora_rank=0", ("export_single_file",)),
        (spec.validation_prompts, "validation_prompts", ("num_validation_images",)),
        (generates, "validation_prompts, or class images to generate", of_samples),
        (holds_out, "validation_data_dir or validation_split", ("max_validation_samples",)),
        (validates, "validation_prompts, validation_data_dir or validation_split", ("validation_steps",)),
        (schedule == "cosine_with_restarts", "lr_scheduler=cosine_with_restarts", ("lr_num_cycles",)),
        (schedule == "polynomial", "lr_scheduler=polynomial", ("lr_power",)),
        (facts.uses_betas, _with("uses_betas"), ("adam_beta1", "adam_beta2")),
        (facts.uses_epsilon, _with("uses_epsilon"), ("adam_epsilon",)),
        (spec.train_text_encoder, "train_text_encoder=1", ("text_encoder_lr",)),
        (not spec.concepts_list, "leaving concepts_list empty", of_one_subject),
        (spec.recipe_facts.has_subjects, with_subjects(), ("instance_prompt",)),
        (spec.recipe_facts.reads_captions, with_captions(), ("caption_column",)),
        (spec.timed_step, "timed_step", ("reference_loss",)),
    )
    sentences = []
    if spec.num_train_epochs and "max_train_steps" in spec.model_fields_set:
        sentences.append("epoch: no effect alongside num_train_step, which wins")
    for fulfilled, needed, names in needs:
        changed = [name for name in names if getattr(spec, name) != RunSpec.model_fields[name].default]
        if changed and not fulfilled:
            sentences.append(f"{', '.join(changed)}: no effect without {needed}")
    return sentences


def high_rates(spec: RunSpec) -> list[str]:
    """A sentence for each learning rate that is far above what such runs use."""
    if not OPTIMIZERS[spec.optimizer].adamw_rates:
        return []
    limit, usual = (_HIGH_FOR_LORA, "1e-4") if spec.lora_rank else (_HIGH, "5e-6 to 1e-5")
    rates = {"lr": spec.learning_rate, "text_encoder_lr": spec.text_encoder_lr or 0.0}
    what = "a LoRA" if spec.lora_rank else "a full fine-tune"
    return [
        f"{name}: {rate:g} is very high for {what}, usually trained with {usual}: it may destroy what the model knows"
        for name, rate in rates.items()
        if rate > limit
    ]


def _with(fact: str) -> str:
    """The optimizers of which a fact is true, in words."""
    return f"one of the optimizers {', '.join(name for name, facts in OPTIMIZERS.items() if getattr(facts, fact))}"
