"""The command that generates images from any model.

`python -m sdtrain.generate MODEL --prompts "a dog" "a cat" --output FOLDER` takes a pipeline folder, a single file, the
folder of a LoRA with its --base_model, or a step checkpoint. It writes the images by prompt and number, with
prompts.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdjob import writing
from sdjob.exit_codes import ExitCode
from sdjob.model.trainable import LORA_FILE
from sdjob.output import run_settings
from sdjob.output.checkpoint_files import STATE
from sdjob.output.layout import INDEX_FILE
from sdjob.problems import JobError, bad_output, bad_setting
from sdjob.settings import compatibility, flags
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Parts
from sdtrain.export import from_checkpoint
from sdtrain.model.generation import generate, generation_settings
from sdtrain.model.load import load
from sdtrain.runtime import devices
from sdtrain.runtime.distributed import World, join
from sdtrain.validation.grid import image_name

# Settings of a run that say what the weights of its checkpoints are.
_TRAINED = {
    *("pretrained_model_name_or_path", "vae"),
    *("prediction_type", "single_file_config", "allow_pickle", "rescale_betas_zero_snr", "max_token_length"),
    *(
        "train_text_encoder",
        "use_ema",
        "lora_rank",
        "lora_alpha",
        "lora_target_modules",
        "use_dora",
        "use_rslora",
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Write the images that a command line asks for; returns its exit code."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        _write_images(_parser().parse_args(arguments))
    except SystemExit as ended:  # argparse has printed the reason, or the help
        return int(ExitCode.BAD_SETTING if ended.code else ExitCode.FINISHED)
    except JobError as error:
        print(error, file=sys.stderr)
        return error.code
    return int(ExitCode.FINISHED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m sdtrain.generate", description="Generate images from a model."
    )
    parser.add_argument("model", help="pipeline folder, single file, folder of a LoRA, or step checkpoint")
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--output", required=True, help="folder for the images")
    parser.add_argument("--base_model", help="of a LoRA; of a step checkpoint if the model has moved since")
    weights = "of a step checkpoint: ema or raw; default: the EMA where the run has one"
    parser.add_argument("--weights", choices=run_settings.WEIGHTS, help=weights)
    parser.add_argument("--num_images", default=1, help="per prompt; image n has the seed SEED + n")
    parser.add_argument("--seed", default=0)
    parser.add_argument("--num_inference_steps", default=25)
    parser.add_argument("--guidance_scale", default=7.5)
    parser.add_argument("--resolution", help="default: that of the model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--allow_pickle", action="store_true")
    return parser


def _write_images(options: argparse.Namespace) -> None:
    """Raises JobError (64, 66, 69, 73)."""
    folder, spec = Path(options.output), _spec(options)
    ema = run_settings.uses_ema(spec, options.weights)
    with join(spec.device) as world:
        parts = _loaded(Path(options.model), spec, world, ema=ema)
        resolution = spec.resolution if options.resolution else parts.native_resolution
        how = replace(generation_settings(spec), resolution=resolution)
        prompts = [prompt for prompt in options.prompts for _ in range(spec.num_validation_images)]
        seeds = [spec.seed + number for number in range(spec.num_validation_images)] * len(options.prompts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            writing.write_text(
                folder / "prompts.json", json.dumps(options.prompts, ensure_ascii=False) + "\n"
            )
            for index, image in enumerate(generate(parts, prompts, seeds, how)):
                name = image_name(*divmod(index, spec.num_validation_images))
                writing.write_png(folder / name, image)
        except OSError as error:
            remedy = "Name a folder that can be written."
            raise JobError(bad_output("--output", f"cannot be written ({error})", remedy)) from error


def _spec(options: argparse.Namespace) -> RunSpec:
    """The settings of a run that only generates. Raises JobError (64, 66)."""
    model, base = Path(options.model), options.base_model
    trained: dict[str, Any] = {}
    if _is_step_checkpoint(model):
        trained = run_settings.settings_of(model).model_dump(include=_TRAINED)
        of_run = trained["pretrained_model_name_or_path"]
        if base is None and not Path(of_run).exists():
            remedy = "Name the folder or file of the model that the run started from."
            raise JobError(bad_setting("--base_model", f"not given, and {of_run} does not exist", remedy))
        base = base or of_run
    elif _is_lora(model) and base is None:
        remedy = "Name the model that the LoRA was trained on."
        raise JobError(bad_setting("--base_model", f"not given, and {model} is a LoRA", remedy))
    elif not _is_lora(model):
        base = options.model
    values = {name: value for name, value in vars(options).items() if name in RunSpec.model_fields and value}
    given = {"output_dir": options.output, "num_validation_images": options.num_images, "seed": options.seed}
    return flags.validate({**trained, **values, **given, "pretrained_model_name_or_path": base})


def _is_step_checkpoint(model: Path) -> bool:
    return (model / STATE).is_file()


def _is_lora(model: Path) -> bool:
    return (model / LORA_FILE).is_file() and not (model / INDEX_FILE).is_file()


def _loaded(model: Path, spec: RunSpec, world: World, *, ema: bool) -> Parts:
    source = from_checkpoint.base_model(spec, world)
    precision = compatibility.resolve_precision(spec, devices.topology(world.device_type, world.size))
    if _is_step_checkpoint(model):
        from_checkpoint.check_base(model, source)
        return from_checkpoint.trained(model, source, spec, precision, world.device, ema=ema)[0]
    parts = load(source, precision, world.device, allow_pickle=spec.allow_pickle, lora=True)
    if _is_lora(model):
        parts.architecture.assemble(parts).load_lora_weights(model, weight_name=LORA_FILE)
    return parts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
