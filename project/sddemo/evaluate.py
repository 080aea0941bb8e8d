"""Generate images for known prompts and count, by their pixels, what they show: python -m sddemo.evaluate PIPELINE."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from sddemo.image_reader import read, shows_subject
from sddemo.scenes import SIZE, Scene, caption, scenes
from sddemo.subject import INSTANCE_PROMPT


@dataclass(frozen=True)
class Accuracy:
    """Fractions of the samples, in [0, 1], whose attribute is the one that the prompt names."""

    shape: float
    colour: float
    ground: float
    all: float


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = 25,
    guidance: float = 3.5,
    batch: int = 16,
) -> list[Image.Image]:
    """One image a prompt; the i-th is made from seed + i, whatever the batch."""
    images: list[Image.Image] = []
    for first in range(0, len(prompts), batch):
        part = list(prompts[first : first + batch])
        generators = [torch.Generator().manual_seed(seed + first + i) for i in range(len(part))]
        images += pipeline(
            part,
            height=SIZE,
            width=SIZE,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
        ).images
    return images


def accuracy(images: Sequence[Image.Image], wanted: Sequence[Scene]) -> Accuracy:
    """Compare each image with the scene that its prompt described."""
    readings = [read(image) for image in images]
    right = {
        name: [getattr(a, name) == getattr(b, name) for a, b in zip(readings, wanted, strict=True)]
        for name in ("shape", "colour", "ground")
    }
    right["all"] = [all(row) for row in zip(*right.values(), strict=True)]
    return Accuracy(**{name: sum(row) / len(row) for name, row in right.items()})


def subject_rate(images: Sequence[Image.Image]) -> float:
    """The fraction of images that show the subject."""
    return sum(map(shows_subject, images)) / len(images)


def grid(images: Sequence[Image.Image], columns: int = 16) -> Image.Image:
    """The images side by side."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * SIZE, rows * SIZE))
    for i, image in enumerate(images):
        sheet.paste(image.resize((SIZE, SIZE)), (i % columns * SIZE, i // columns * SIZE))
    return sheet


def evaluate(
    folder: Path, samples: int, seed: int, lora: Path | None = None
) -> tuple[dict[str, Any], list[Image.Image]]:
    """Subject rate for the instance prompt, and accuracies over full prompts of circles and of every shape.

    Returns the metrics and the images: a block of `samples` for each of the three sets of prompts.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).to(torch.float32)
    if lora is not None:
        pipeline.load_lora_weights(str(lora))
    pipeline.set_progress_bar_config(disable=True)
    every = scenes(samples, seed)
    circles = [replace(scene, shape="circle") for scene in every]
    subject = generate(pipeline, [INSTANCE_PROMPT] * samples, seed)
    of_class = generate(pipeline, [caption(scene) for scene in circles], seed)
    of_world = generate(pipeline, [caption(scene) for scene in every], seed)
    metrics = {
        "samples": samples,
        "seed": seed,
        "subject": subject_rate(subject),
        "subject_in_class": subject_rate(of_class),
        "class": asdict(accuracy(of_class, circles)),
        "world": asdict(accuracy(of_world, every)),
    }
    return metrics, subject + of_class + of_world


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sddemo.evaluate", description=__doc__)
    parser.add_argument("pipeline", type=Path, help="a pipeline folder")
    parser.add_argument("--lora", type=Path, help="a folder with LoRA weights for it")
    parser.add_argument("--samples", type=int, default=64, help="images for each set of prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grid", type=Path, help="where to write the images, as one PNG")
    arguments = parser.parse_args()
    metrics, images = evaluate(arguments.pipeline, arguments.samples, arguments.seed, arguments.lora)
    print(json.dumps(metrics, indent=1))
    if arguments.grid:
        grid(images).save(arguments.grid)


if __name__ == "__main__":
    main()
