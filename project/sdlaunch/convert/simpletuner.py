"""SimpleTuner's config.json: the keys that matter for Stable Diffusion; others are said to be unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sdjob.settings.diffusers_flags import UNSUPPORTED, Unsupported
from sdlaunch.convert.lines import DEFAULT, Flag, Line, Rule, lost, note, setting

# Our name → its names there.
SIMPLETUNER: Mapping[str, tuple[str, ...]] = {
    "checkpointing_steps": ("checkpoint_step_interval",),
    "proportion_empty_prompts": ("caption_dropout_probability",),
    "validation_steps": ("validation_step_interval",),
    "num_inference_steps": ("validation_num_inference_steps",),
    "guidance_scale": ("validation_guidance",),
    "lora_weights": ("init_lora",),
}
_FAMILIES = ("sd1x", "sd2x", "sdxl")
_OPTIMIZERS = {
    "adamw_bf16": "adamw",
    "optimi-adamw": "adamw",
    "bnb-adamw": "adamw",
    "bnb-adamw8bit": "adamw8bit",
    "ao-adamw8bit": "adamw8bit",
}
_ATTENTION = {"diffusers": "auto", "sdpa": "sdpa", "xformers": "xformers"}
_BACKEND = lost(
    "Set DATASET_DIR to the folder of the images; captions lie next to them, or in metadata.jsonl."
)
_FIXED = "There is no choice to make here."


def flags_of_json(content: Mapping[str, Any]) -> list[Flag]:
    """The keys, which may have the dashes of a command line."""
    return [Flag.of_key(name.lstrip("-").replace("-", "_"), value) for name, value in content.items()]


def is_lora(flags: Iterable[Flag]) -> bool:
    return any(flag.name == "model_type" and flag.text == "lora" for flag in flags)


def _model_type(flag: Flag) -> Iterable[Line]:
    if flag.text in ("lora", "full"):
        yield Line(str(flag), remark="A LoRA is trained where lora_rank is above 0.")
    else:
        yield Line(str(flag), remark="Only LoRA and full fine-tuning.", lost=True)


def _family(flag: Flag) -> Iterable[Line]:
    known = flag.text in _FAMILIES
    text = "The architecture is read from the model." if known else "Only Stable Diffusion 1.x, 2.x and XL."
    yield Line(str(flag), remark=text, lost=not known)


def _unless_zero(name: str) -> Rule:
    """Epochs or steps, of which the other is meant where one is 0."""
    return lambda flag: [
        Line(str(flag), remark=DEFAULT) if flag.text == "0" else Line(str(flag), name, flag.text)
    ]


def _lora_kind(flag: Flag) -> Iterable[Line]:
    is_standard = flag.text == "standard"
    text = (
        "A LoRA is trained where lora_rank is above 0." if is_standard else "Only LoRA: use_dora, use_rslora."
    )
    yield Line(str(flag), remark=text, lost=not is_standard)


def _precision(flag: Flag) -> Iterable[Line]:
    text = "The frozen weights are not quantized, which saves memory only."
    yield Line(str(flag), remark=DEFAULT if flag.text == "no_change" else text)


RULES: Mapping[str, Rule] = {
    "model_type": _model_type,
    "model_family": _family,
    "lora_type": _lora_kind,
    "num_train_epochs": _unless_zero("epoch"),
    "max_train_steps": _unless_zero("num_train_step"),
    "optimizer": setting("optimizer", lambda value: _OPTIMIZERS.get(value, value)),
    "attention_mechanism": setting("attention", lambda value: _ATTENTION.get(value, value)),
    "base_model_precision": _precision,
    "data_backend_config": _BACKEND,
    "instance_data_dir": setting("DATASET_DIR"),
    "aspect_bucket_rounding": note("The sides of buckets follow from resolution and bucket_reso_steps."),
    "resolution_type": note("resolution is the side of a square in pixels; buckets have about its area."),
    "minimum_image_size": note("Small images are enlarged: leave out those that are too small."),
    "validation_resolution": note("Samples have the size of resolution."),
    "validation_seed": note("Samples have seeds of their own, which follow from seed."),
    "tracker_run_name": note("TensorBoard files and run/metrics.jsonl are written in any case."),
    "push_checkpoints_to_hub": note("Checkpoints stay in the output folder."),
}
SIMPLETUNER_UNSUPPORTED: Mapping[str, Unsupported] = {
    **UNSUPPORTED,
    "lycoris_config": Unsupported("Only LoRA: lora_rank, lora_alpha, lora_target_modules."),
    "validation_guidance_rescale": Unsupported(_FIXED, ("0.0", "0"), keeps_result=True),
    "validation_torch_compile": Unsupported(_FIXED, ("false",), keeps_result=True),
    "disable_benchmark": Unsupported(_FIXED, ("true", "false"), keeps_result=True),
}
