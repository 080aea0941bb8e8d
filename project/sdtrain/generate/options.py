"""The command line of `bash train.sh generate`: one field for each flag, from which parser and help are made."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdjob.dataset.text_files import read_text
from sdjob.problems import JobError, bad_setting
from sdjob.settings import choices, flags
from sdjob.settings.fields import Amount, Positive, Text, TextList, Whole, setting, settings_of, text_list
from sdjob.settings.run_spec import RunSpec
from sdtrain.generate.samplers import SAMPLERS

_flag = partial(setting, "generate")

Side = Annotated[Whole, Field(ge=32, le=4096, multiple_of=8)]
_HOW = RunSpec.model_fields  # of samples in training: the same defaults


class Options(BaseModel):
    """What to generate, with which models, and where to. Frozen; invalid values raise ValidationError."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    models: TextList = _flag(
        (),
        "pipeline folder, single file, folder of a hub cache, LoRA, step checkpoint, or output folder of a run, "
        "which means all its step checkpoints; several are compared in a grid",
        name="MODEL",
    )
    prompts: TextList = _flag((), "one or more prompts")
    prompts_file: Text | None = _flag(None, "file with a prompt in each line, or a JSON list")
    output: Text = _flag(..., "folder for the images")
    num_images: Positive = _flag(1, "images per prompt; image n has the seed SEED + n")
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = _flag(0, "seed of the first image; default: 0")
    num_inference_steps: Positive = _flag(_HOW["num_inference_steps"].default, "denoising steps")
    guidance_scale: Amount = _flag(_HOW["guidance_scale"].default, "guidance by the prompt; 1: none")
    negative_prompt: str = _flag("", "what the images should not show")
    scheduler: Literal[tuple(SAMPLERS)] | None = _flag(  # type: ignore[valid-type]
        None, f"one of {', '.join(SAMPLERS)}; default: that of the model"
    )
    resolution: Side | None = _flag(None, "side of square images; default: that of the model")
    height: Side | None = _flag(None, "height instead")
    width: Side | None = _flag(None, "width instead")
    grid: bool = _flag(False, "also write grid.png: a row for each prompt; always with several models")
    lora: Text | None = _flag(
        None, "LoRA to add: a .safetensors file in either layout, or the folder of a result"
    )
    lora_scale: Annotated[float, Field(allow_inf_nan=False)] = _flag(1.0, "weight of the LoRA")
    base_model: Text | None = _flag(None, "of a LoRA; of a step checkpoint if the model has moved since")
    weights: Literal["ema", "raw"] | None = _flag(
        None, "of a step checkpoint: ema or raw; default: the EMA where the run has one"
    )
    allow_pickle: bool = _flag(False, "load weights that exist only as pickles (they can run code)")
    device: choices.Device = _flag("auto", f"device type: {', '.join(choices.DEVICES)}")
    mixed_precision: choices.Precision = _flag("auto", "type of the computation: auto, no, fp16, bf16")
    sample_batch_size: Positive = _flag(
        _HOW["sample_batch_size"].default, "images generated at once, on each device"
    )
    nproc_per_node: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,2})$")] = _flag(
        "auto", "processes, each with its own device; auto: one per accelerator"
    )

    def every_prompt(self) -> tuple[str, ...]:
        """The prompts of the command line, then those of the file. Raises JobError (64, 66)."""
        prompts = (*self.prompts, *(_prompts_of(Path(self.prompts_file)) if self.prompts_file else ()))
        if not prompts:
            found = f"{self.prompts_file} holds no prompt" if self.prompts_file else "not given"
            remedy = 'Write --prompts "a photo of sks dog" "another prompt", or --prompts_file FILE.'
            raise JobError(bad_setting("--prompts", found, remedy))
        return prompts


def _prompts_of(file: Path) -> tuple[str, ...]:
    text = read_text(file)
    if text.lstrip().startswith("["):
        try:
            found = text_list(text)
        except ValueError as error:
            remedy = 'Write one prompt in each line, or a list such as ["one", "two"].'
            raise JobError(
                bad_setting("--prompts_file", f"{file} is not a JSON list ({error})", remedy)
            ) from None
        return tuple(str(prompt) for prompt in found)
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def parse(argv: Sequence[str]) -> Options:
    """Raises JobError (64) with everything that is wrong; SystemExit after the help."""
    given = vars(_parser().parse_intermixed_args(argv))
    values = {name: value for name, value in given.items() if value not in (None, [])}
    problems = []
    if not values.get("models"):
        remedy = (
            "Name a pipeline folder, a single file, a LoRA, a step checkpoint, or the output folder of a run."
        )
        problems.append(bad_setting("MODEL", "not given", remedy))
    try:
        options = Options.model_validate(values)
    except ValidationError as error:
        raise JobError([*problems, *flags.problems_of(error, Options, prefix="--")]) from None
    if problems:
        raise JobError(problems)
    return options


class _Parser(argparse.ArgumentParser):
    """Reports through a JobError, with the documented exit code."""

    def error(self, message: str) -> NoReturn:
        remedy = "See `bash train.sh generate --help` for the flags."
        raise JobError(bad_setting("command line", message, remedy))


def _parser() -> argparse.ArgumentParser:
    about = "Generate images from a model, or compare models in a grid of prompts."
    parser = _Parser("bash train.sh generate", allow_abbrev=False, description=about)
    for field, each in settings_of(Options).items():
        default = None if Options.model_fields[field].is_required() else Options.model_fields[field].default
        text = (
            each.help
            if default in (None, (), "", False) or "default:" in each.help
            else f"{each.help} [{default}]"
        )
        shown = text.replace("%", "%%")
        if field == "models":
            parser.add_argument(field, nargs="*", metavar="MODEL", help=shown)
        elif isinstance(default, bool):
            parser.add_argument(f"--{field}", action="store_true", default=None, help=shown)
        else:
            words = "+" if field == "prompts" else None
            parser.add_argument(f"--{field}", nargs=words, metavar=field.upper(), help=shown)
    return parser
