"""The command line of `python -m sdtrain.generate`: one field for each flag, from which parser and help are made."""

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

_image = partial(setting, "images")
_model = partial(setting, "model")
_work = partial(setting, "work")

Side = Annotated[Whole, Field(ge=32, le=4096, multiple_of=8)]
_HOW = RunSpec.model_fields  # of samples in training: the same defaults


class Options(BaseModel):
    """What to generate, with which models, and where to. Frozen; invalid values raise ValidationError."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    models: TextList = _model(
        (),
        "pipeline folder, single file, folder of a hub cache, LoRA, step checkpoint, or output folder of a run, "
        "which means all its step checkpoints; several are compared in a grid",
        name="MODEL",
    )
    prompts: TextList = _image((), "one or more prompts", name="--prompts")
    prompts_file: Text | None = _image(
        None, "file with a prompt in each line, or a JSON list", name="--prompts_file"
    )
    output: Text = _image(..., "folder for the images", name="--output")
    num_images: Positive = _image(1, "images per prompt; image n has the seed SEED + n", name="--num_images")
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = _image(
        0, "seed of the first image; default: 0", name="--seed"
    )
    num_inference_steps: Positive = _image(
        _HOW["num_inference_steps"].default, "denoising steps", name="--num_inference_steps"
    )
    guidance_scale: Amount = _image(
        _HOW["guidance_scale"].default, "guidance by the prompt; 1: none", name="--guidance_scale"
    )
    negative_prompt: str = _image("", "what the images should not show", name="--negative_prompt")
    scheduler: Literal[tuple(SAMPLERS)] | None = _image(  # type: ignore[valid-type]
        None, f"one of {', '.join(SAMPLERS)}; default: that of the model", name="--scheduler"
    )
    resolution: Side | None = _image(
        None, "side of square images; default: that of the model", name="--resolution"
    )
    height: Side | None = _image(None, "height instead", name="--height")
    width: Side | None = _image(None, "width instead", name="--width")
    grid: bool = _image(
        False, "also write grid.png: a row for each prompt; always with several models", name="--grid"
    )
    lora: Text | None = _model(
        None, "LoRA to add: a .safetensors file in either layout, or the folder of a result", name="--lora"
    )
    lora_scale: Annotated[float, Field(allow_inf_nan=False)] = _model(
        1.0, "weight of the LoRA", name="--lora_scale"
    )
    base_model: Text | None = _model(
        None, "of a LoRA; of a step checkpoint if the model has moved since", name="--base_model"
    )
    weights: Literal["ema", "raw"] | None = _model(
        None, "of a step checkpoint: ema or raw; default: the EMA where the run has one", name="--weights"
    )
    allow_pickle: bool = _model(
        False, "load weights that exist only as pickles (they can run code)", name="--allow_pickle"
    )
    device: choices.Device = _work("auto", f"device type: {', '.join(choices.DEVICES)}", name="--device")
    mixed_precision: choices.Precision = _work(
        "auto", "type of the computation: auto, no, fp16, bf16", name="--mixed_precision"
    )
    sample_batch_size: Positive = _work(
        _HOW["sample_batch_size"].default,
        "images generated at once, on each device",
        name="--sample_batch_size",
    )
    nproc_per_node: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,2})$")] = _work(
        "auto", "processes, each with its own device; auto: one per accelerator", name="--nproc_per_node"
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
        raise JobError([*problems, *flags.problems_of(error, Options)]) from None
    if problems:
        raise JobError(problems)
    return options


class _Parser(argparse.ArgumentParser):
    """Reports through a JobError, with the documented exit code."""

    def error(self, message: str) -> NoReturn:
        remedy = "See `python -m sdtrain.generate --help` for the flags."
        raise JobError(bad_setting("command line", message, remedy))


def _parser() -> argparse.ArgumentParser:
    about = "Generate images from a model, or compare models in a grid of prompts."
    parser = _Parser("python -m sdtrain.generate", allow_abbrev=False, description=about)
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
            parser.add_argument(each.name, action="store_true", default=None, help=shown)
        else:
            words = "+" if field == "prompts" else None
            parser.add_argument(each.name, nargs=words, metavar=field.upper(), help=shown)
    return parser
