"""Generate images from any model: for validation, for the class, and by a command.

`python -m sdtrain.generate MODEL --prompts "a dog" "a cat" --output FOLDER` takes a pipeline folder, a single file, or
the folder of a LoRA with its --base_model, and writes the images by prompt and number, with prompts.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from sdjob.exit_codes import ExitCode
from sdjob.model.pipeline import find_pipeline
from sdjob.output.layout import INDEX_FILE, LORA_FILE
from sdjob.output.resume import STATE
from sdjob.problems import JobError, bad_input, bad_output, bad_setting
from sdjob.settings import compatibility, flags
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import GenerationSettings, Parts
from sdtrain.model import convert
from sdtrain.model.load import load
from sdtrain.runtime import devices
from sdtrain.runtime.distributed import World, join
from sdtrain.runtime.stop import StopRequest
from sdtrain.validation.grid import image_name


def generation_settings(spec: RunSpec) -> GenerationSettings:
    """How the images of a run are generated."""
    return GenerationSettings(
        spec.resolution,
        spec.num_inference_steps,
        spec.guidance_scale,
        spec.sample_batch_size,
        spec.prompt_chunks,
    )


@contextmanager
def evaluating(parts: Parts) -> Iterator[None]:
    """Trainable parts in evaluation mode, their forward pass in the type of the run."""
    modes = [(part, part.training) for part in parts.trainable.values()]
    for part, _ in modes:
        part.eval()
    mixed = parts.dtype != torch.float32
    try:
        with torch.autocast(parts.device.type, parts.dtype) if mixed else nullcontext():
            yield
    finally:
        for part, training in modes:
            part.train(training)


def generate(
    parts: Parts, prompts: Sequence[str], seeds: Sequence[int], how: GenerationSettings
) -> Iterator[Image.Image]:
    """One image per prompt and seed, in their order; an image does not depend on its batch."""
    for start in range(0, len(prompts), how.batch_size):
        batch = slice(start, start + how.batch_size)
        with evaluating(parts), torch.inference_mode():  # left before a yield, or the caller would be in them
            # Encoded as in training, so that a long prompt means the same.
            encoded, empty = (
                parts.encode(parts.token_ids(texts, how.prompt_chunks))
                for texts in (prompts[batch], [""] * len(prompts[batch]))
            )
            images = list(parts.architecture.sample(parts, encoded, empty, list(seeds[batch]), how))
        yield from images


# --- the command -------------------------------------------------------------------------------------


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
    parser.add_argument("model", help="pipeline folder, single file, or folder of a LoRA")
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--output", required=True, help="folder for the images")
    parser.add_argument("--base_model", help="of a LoRA")
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
    folder, lora = Path(options.output), _lora_of(Path(options.model), options.base_model)
    values = {name: value for name, value in vars(options).items() if name in RunSpec.model_fields and value}
    spec = flags.validate(
        {
            **values,
            "pretrained_model_name_or_path": options.base_model if lora else options.model,
            "output_dir": options.output,
            "num_validation_images": options.num_images,
            "seed": options.seed,
        }
    )
    with join(spec.device) as world:
        parts = _loaded(spec, world)
        if lora:
            parts.architecture.assemble(parts).load_lora_weights(lora, weight_name=LORA_FILE)
        resolution = spec.resolution if options.resolution else parts.native_resolution
        how = replace(generation_settings(spec), resolution=resolution)
        prompts = [prompt for prompt in options.prompts for _ in range(spec.num_validation_images)]
        seeds = [spec.seed + number for number in range(spec.num_validation_images)] * len(options.prompts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "prompts.json").write_text(json.dumps(options.prompts, ensure_ascii=False) + "\n")
            for index, image in enumerate(generate(parts, prompts, seeds, how)):
                image.save(folder / image_name(*divmod(index, spec.num_validation_images)))
        except OSError as error:
            remedy = "Name a folder that can be written."
            raise JobError(bad_output("--output", f"cannot be written ({error})", remedy)) from error


def _lora_of(model: Path, base: str | None) -> Path | None:
    """The folder of a LoRA; None: the model is complete. Raises JobError (64, 66)."""
    if (model / STATE).is_file():
        remedy = "Finish the run that made it (resume=auto), and generate from its result."
        raise JobError(bad_input(str(model), "is a step checkpoint, which cannot generate by itself", remedy))
    if not (model / LORA_FILE).is_file() or (model / INDEX_FILE).is_file():
        return None
    if base is None:
        remedy = "Name the model that the LoRA was trained on."
        raise JobError(bad_setting("--base_model", f"not given, and {model} is a LoRA", remedy))
    return model


def _loaded(spec: RunSpec, world: World) -> Parts:
    source = find_pipeline(Path(spec.pretrained_model_name_or_path), None, allow_pickle=spec.allow_pickle)
    source = convert.as_folder(source, spec, world, StopRequest(None))
    precision = compatibility.resolve_precision(spec, devices.topology(world.device_type, world.size))
    return load(source, precision, world.device, allow_pickle=spec.allow_pickle, lora=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
