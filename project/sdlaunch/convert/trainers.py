"""What is known of each trainer's flags besides the names that are settings here too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sdjob.model.hub_cache import is_hub_name
from sdjob.settings.diffusers_flags import UNSUPPORTED, Unsupported
from sdlaunch.convert import kohya, simpletuner
from sdlaunch.convert.kohya_flags import KOHYA_UNSUPPORTED
from sdlaunch.convert.lines import DEFAULT, Flag, Line, Rule, lost, note, whole
from sdlaunch.settings.other_trainers import KOHYA


@dataclass(frozen=True)
class Trainer:
    """Its flags: those with another name here, those with a rule, and those without a counterpart."""

    renamed: Mapping[str, str]  # its name → ours
    rules: Mapping[str, Rule]
    unsupported: Mapping[str, Unsupported]


def _input(name: str, mount: str = "") -> Rule:
    """A model or dataset by its name or path; `mount`: the variable of the mount that an absolute path is."""

    def rule(flag: Flag) -> Iterable[Line]:
        if mount and flag.text.startswith("/"):
            yield Line(str(flag), mount, flag.text)
            return
        yield Line(str(flag), name, _below_mount(flag.text))
        if is_hub_name(flag.text):  # a relative path looks alike
            yield Line(str(flag), "offline", "0", _HUB)

    return rule


def _output(flag: Flag) -> Iterable[Line]:
    if flag.text.startswith("/"):
        yield Line(str(flag), "OUTPUT_DIR", flag.text)
    else:
        yield Line(
            str(flag), remark="Everything is written to /output, or to the folder that OUTPUT_DIR names."
        )


def _interval(flag: Flag) -> Iterable[Line]:
    """A checkpoint every so many steps; a huge number says never."""
    if (whole(flag.text) or 0) > _NEVER:
        text = "Larger than any run has steps; there is always a checkpoint at the end."
        yield Line(str(flag), "checkpointing_steps", str(_NEVER), text)
    else:
        yield Line(str(flag), "checkpointing_steps", flag.text)


def _resume(flag: Flag) -> Iterable[Line]:
    if flag.text == "latest":
        yield Line(str(flag), "resume", "auto")
    else:
        text = "Checkpoints of another trainer cannot be continued; lora_weights starts from its LoRA."
        yield Line(str(flag), remark=text, lost=True)


def _repository(flag: Flag) -> Iterable[Line]:
    """A repository of the hub that the result is uploaded to."""
    if is_hub_name(flag.text):
        yield Line(str(flag), "publish", f"hub:{flag.text}", "Uploaded at the end; needs HF_TOKEN.")
    else:
        yield Line(str(flag), remark="Set publish=hub:USER/NAME, with the user's name.")


def _class_images(flag: Flag) -> Iterable[Line]:
    """Those scripts generate what the folder lacks; here it is only read."""
    text = "It must hold the images; without this line they are generated once, below the output folder."
    yield Line(str(flag), "class_data_dir", flag.text, text)


def _scaled(flag: Flag) -> Iterable[Line]:
    """`--scale_lr` needs other flags: translate.py multiplies."""
    return [Line(str(flag), remark=DEFAULT)] if flag.is_off else []


_HUB = "Downloaded if nothing below the mount has this name; offline=1 needs it there."
_NEVER = 10**9  # steps
_COMMON: Mapping[str, Rule] = {
    "pretrained_model_name_or_path": _input("model_name"),
    "instance_data_dir": _input("dataset_name", "DATASET_DIR"),
    "train_data_dir": _input("dataset_name", "DATASET_DIR"),
    "dataset_name": _input("dataset_name", "DATASET_DIR"),
    "output_dir": _output,
    "checkpointing_steps": _interval,
    "save_steps": _interval,
    "save_every_n_steps": _interval,
    "hub_model_id": _repository,
    "huggingface_repo_id": _repository,
}
_DIFFUSERS = {
    **_COMMON,
    "resume_from_checkpoint": _resume,
    "scale_lr": _scaled,
    "class_data_dir": _class_images,
}
_COLOSSAL: Mapping[str, Rule] = {
    **_DIFFUSERS,
    "offload_optim_frac": lost(
        "plugin=gemini: placement=cpu keeps the optimizer state in the memory of the host."
    ),
    "externel_unet_path": lost("Put this U-Net into the folder unet of the model."),
    "test_run": lost("It trains on a few images only: mount a folder with those, or lower num_train_step."),
    "logging_dir": note(
        "That script does not use it; event files are written to tensorboard/ of the output folder."
    ),
}

TRAINERS: Mapping[str, Trainer] = {
    "diffusers": Trainer({}, _DIFFUSERS, UNSUPPORTED),
    "Colossal-AI": Trainer({}, _COLOSSAL, UNSUPPORTED),
    "kohya": Trainer(
        {theirs: ours for ours, names in KOHYA.items() for theirs in names},
        {**_COMMON, **kohya.RULES},
        KOHYA_UNSUPPORTED,
    ),
    "SimpleTuner": Trainer(
        {theirs: ours for ours, names in simpletuner.SIMPLETUNER.items() for theirs in names},
        {**_DIFFUSERS, **simpletuner.RULES},
        simpletuner.SIMPLETUNER_UNSUPPORTED,
    ),
}


def _below_mount(path: str) -> str:
    return path if path.startswith("/") else path.removeprefix("./").rstrip("/")
