"""kohya's sd-scripts: its TOML files as flags, and the flags that need more than another name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdlaunch.convert.lines import DEFAULT, Flag, Line, Rule, fixed, lost, note, setting, whole

_NO_EPOCHS = "Set {} in steps; the plan shows the steps per epoch."
_OTHER_SUBSET = (
    "More than one dataset: put the images into one folder, or list the subjects in concepts_list."
)
_LAYER_ARGUMENT = "Name the layers with lora_target_modules; all get lora_rank."

# Arguments of optimizer_args → our setting; betas are two.
_OPTIMIZER_ARGUMENTS = {"weight_decay": "adam_weight_decay", "eps": "adam_epsilon"}
_AS_PRODIGY_IS = ("decouple=true", "use_bias_correction=true", "safeguard_warmup=true")


def flags_of_toml(content: Mapping[str, Any]) -> tuple[list[Flag], list[Line]]:
    """The keys of a configuration or of a dataset file as flags, and remarks on what flags cannot say."""
    flags: list[Flag] = []
    remarks: list[Line] = []
    for name, value in content.items():
        if name == "datasets" and isinstance(value, list):
            found, said = _flags_of_datasets(value)
            flags += found
            remarks += said
        elif isinstance(value, Mapping):  # sections have no meaning of their own
            flags += [Flag.of_key(key, inner) for key, inner in value.items()]
        else:
            flags.append(Flag.of_key(name, value))
    return flags, remarks


def _flags_of_datasets(datasets: Sequence[Any]) -> tuple[list[Flag], list[Line]]:
    """The one subset that is trained on, and the one of the class."""
    flags: list[Flag] = []
    remarks: list[Line] = []
    trained = classes = 0
    for dataset in (each for each in datasets if isinstance(each, Mapping)):
        flags += [Flag.of_key(key, value) for key, value in dataset.items() if key != "subsets"]
        subsets = dataset.get("subsets", [])
        if not isinstance(subsets, list) or not all(isinstance(each, Mapping) for each in subsets):
            origin = str(Flag.of_key("subsets", subsets))
            remarks.append(Line(origin, remark="It is no list of tables.", lost=True))
            continue
        for subset in subsets:
            of_class = bool(subset.get("is_reg"))
            trained, classes = trained + (not of_class), classes + of_class
            if (classes if of_class else trained) > 1:
                origin = f"image_dir = {subset.get('image_dir')}"
                remarks.append(Line(origin, remark=_OTHER_SUBSET, lost=True))
                continue
            prefix = "class_" if of_class else ""
            flags += [Flag.of_key(prefix + key, value) for key, value in subset.items() if key != "is_reg"]
    return flags, remarks


def prepared(flags: Sequence[Flag]) -> tuple[list[Flag], list[Line]]:
    """Flags that depend on each other, as they mean alone; and those that others make ineffective."""
    by_name = {flag.name: flag for flag in flags}
    ineffective = [(flag, _why_ineffective(flag, by_name)) for flag in flags]
    remarks = [Line(str(flag), remark=why) for flag, why in ineffective if why]
    return [_alone(flag, by_name) for flag, why in ineffective if not why], remarks


def _why_ineffective(flag: Flag, others: Mapping[str, Flag]) -> str:
    """What takes the place of a flag; "": nothing."""
    if flag.name == "max_train_steps" and "max_train_epochs" in others:
        return "max_train_epochs takes precedence there."
    disk = others.get(f"{flag.name}_to_disk")
    if flag.name in ("cache_latents", "cache_text_encoder_outputs") and disk and not disk.is_off:
        return f"{disk.name} takes precedence."
    if flag.name == "learning_rate" and {"unet_lr", "text_encoder_lr"} <= {*others}:
        return "unet_lr and text_encoder_lr take precedence."
    return ""


def _alone(flag: Flag, others: Mapping[str, Flag]) -> Flag:
    """The flag that means the same without the others: epochs of images that are repeated, a fraction of the steps."""
    if flag.name == "learning_rate" and "unet_lr" in others:
        return replace(flag, name="text_encoder_lr", written=str(flag))
    repeats = others.get("num_repeats", others.get("dataset_repeats", Flag(""))).text
    times, epochs = whole(repeats), whole(flag.text)
    if flag.name == "max_train_epochs" and times is not None and epochs is not None:
        return replace(flag, values=(str(epochs * times),), written=f"{flag} × num_repeats {times}")
    steps = whole(others.get("max_train_steps", Flag("", ("1600",))).text)
    is_fraction = "max_train_epochs" not in others and re.fullmatch(r"0?\.\d+", flag.text)
    if flag.name == "lr_warmup_steps" and is_fraction and steps is not None:
        warm_up = str(round(float(flag.text) * steps))
        return replace(flag, values=(warm_up,), written=f"{flag} of {steps} steps")
    return flag


def recipe(flags: Sequence[Flag]) -> str:
    """DreamBooth where the images have one prompt, else captions are expected."""
    names = {flag.name for flag in flags}
    return "dreambooth" if "class_tokens" in names and "caption_extension" not in names else "text_to_image"


def is_lora(flags: Iterable[Flag]) -> bool:
    return any(flag.name in ("network_module", "network_dim") for flag in flags)


# --- flags that need more than another name ------------------------------------------------------------


def _resolution(flag: Flag) -> Iterable[Line]:
    sides = [side.strip() for text in flag.values for side in text.split(",")]
    if len({*sides}) > 1:
        text = "Training images are squares, or buckets of the area of one (aspect_ratio_buckets)."
        yield Line(str(flag), remark=text, lost=True)
    else:
        yield Line(str(flag), "resolution", sides[0] if sides else "")


def _network_module(flag: Flag) -> Iterable[Line]:
    if flag.text == "networks.lora":
        yield Line(str(flag), remark="A LoRA is trained where lora_rank is above 0.")
    else:
        yield Line(str(flag), remark="Only LoRA is trained: lora_rank, use_dora, use_rslora.", lost=True)


def _optimizer_args(flag: Flag) -> Iterable[Line]:
    shown = str(flag)
    if not flag.values:
        yield Line(shown, remark=DEFAULT)
    for argument in flag.values:
        name, _, value = argument.partition("=")
        if name in _OPTIMIZER_ARGUMENTS:
            yield Line(shown, _OPTIMIZER_ARGUMENTS[name], value)
        elif name == "betas" and len(parts := value.strip("()[]").split(",")) == 2:
            yield from (Line(shown, f"adam_beta{i}", part.strip()) for i, part in enumerate(parts, 1))
        elif argument.lower() in _AS_PRODIGY_IS:
            yield Line(shown, remark=f"{argument} is how optimizer=prodigy works in any case.")
        else:
            yield Line(shown, remark=f"{argument} has no setting.", lost=True)


def _network_args(flag: Flag) -> Iterable[Line]:
    shown = str(flag)
    if not flag.values:
        yield Line(shown, remark=DEFAULT)
    yield from (Line(shown, remark=f"{each}: {_LAYER_ARGUMENT}", lost=True) for each in flag.values)


def _repeats(flag: Flag) -> Iterable[Line]:
    text = "An epoch sees each image once here: epoch is multiplied by this number; steps need no change."
    yield Line(str(flag), remark=DEFAULT if flag.text == "1" else text)


def _text_encoder_lr(flag: Flag) -> Iterable[Line]:
    different = len({*flag.values}) > 1
    text = "Both text encoders have one learning rate here." if different else ""
    yield Line(str(flag), "text_encoder_lr", flag.values[0] if flag.values else "", text, lost=different)


def _class_images(flag: Flag) -> Iterable[Line]:
    yield Line(str(flag), "class_data_dir", flag.text)
    yield Line(str(flag), "with_prior_preservation", "1")


def _stop_text_encoder(flag: Flag) -> Iterable[Line]:
    if flag.text.startswith("-"):
        yield Line(str(flag), "train_text_encoder", "0")
    else:
        yield Line(str(flag), remark="The text encoder is trained to the end, or not at all.", lost=True)


def _caption_extension(flag: Flag) -> Iterable[Line]:
    if flag.text.lstrip(".") in ("txt", "caption"):
        yield Line(str(flag), remark="Captions are found by this suffix in any case.")
    else:
        yield Line(str(flag), remark="Rename the captions to .txt or .caption.", lost=True)


RULES: Mapping[str, Rule] = {
    "resolution": _resolution,
    "network_module": _network_module,
    "network_args": _network_args,
    "optimizer_args": _optimizer_args,
    "num_repeats": _repeats,
    "dataset_repeats": _repeats,
    "text_encoder_lr": _text_encoder_lr,
    "learning_rate_te": setting("text_encoder_lr"),
    "learning_rate_te1": setting("text_encoder_lr"),
    "network_dropout": setting("lora_dropout"),
    "network_weights": setting("lora_weights"),
    "network_train_unet_only": fixed("train_text_encoder", "0"),
    "stop_text_encoder_training": _stop_text_encoder,
    "ip_noise_gamma": setting("input_perturbation"),
    "random_crop": fixed("center_crop", "0"),
    "cache_latents_to_disk": fixed("cache_latents", "disk"),
    "cache_text_encoder_outputs_to_disk": fixed("cache_text_embeddings", "disk"),
    "xformers": fixed("attention", "xformers"),
    "diffusers_xformers": fixed("attention", "xformers"),
    "sdpa": fixed("attention", "sdpa"),
    "caption_extension": _caption_extension,
    "caption_extention": _caption_extension,
    "class_tokens": setting("instance_prompt"),
    "class_image_dir": _class_images,
    "class_class_tokens": setting("class_prompt"),
    "class_num_repeats": note("As many class images are used as num_class_images says, each once per epoch."),
    "image_dir": setting("DATASET_DIR"),
    "reg_data_dir": lost(
        "Set class_data_dir to the folder with the images themselves, with_prior_preservation=1 and class_prompt."
    ),
    "save_every_n_epochs": note(_NO_EPOCHS.format("checkpointing_steps")),
    "sample_every_n_epochs": note(_NO_EPOCHS.format("validation_steps")),
    "validate_every_n_epochs": note(_NO_EPOCHS.format("validation_steps")),
    "validate_every_n_steps": setting("validation_steps"),
    "max_validation_steps": note("max_validation_samples limits the held-out images."),
    "save_last_n_epochs": note("checkpoints_total_limit is a number of checkpoints."),
    "save_last_n_steps": note("checkpoints_total_limit is a number of checkpoints."),
    "sample_prompts": note("Set validation_prompts to the prompts in that file, one or a JSON list."),
    "resume": lost("A state of another trainer cannot be continued; lora_weights starts from its LoRA."),
}
