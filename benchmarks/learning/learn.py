"""What fine-tuning learns on the synthetic dataset: train, generate, read the pixels, print a row of the table.

    PYTHONPATH=project python benchmarks/learning/learn.py FOLDER [RUN …]

Two tasks. *subject*: DreamBooth with prior preservation on the six images of the demo. *attribute*: text-to-image on
96 captioned images, half of which are magenta, called "sks" in the captions. None of these is a cross, and half of the
prompts ask for one, so that a model that only repeats its images scores low.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from sddemo.evaluate import accuracy, generate, subject_rate
from sddemo.image_reader import is_painted, read
from sddemo.scenes import GROUNDS, OVERSAMPLING, Scene, canvas, caption, paint, render, scenes
from sddemo.subject import CLASS_PROMPT, CORE, INSTANCE_PROMPT
from sddemo.write_demo import write_demo

SKS = "sks"  # the word for the attribute
ATTENTION = "to_k,to_q,to_v,to_out.0"
EVERYWHERE = f"{ATTENTION},proj_in,proj_out,ff.net.0.proj,ff.net.2,conv1,conv2,time_emb_proj"


@dataclass(frozen=True)
class Run:
    """One row: a task, and the settings besides those of the task."""

    task: str  # subject, attribute
    settings: dict[str, Any] = field(default_factory=dict)


COMMON = {
    "resolution": 64,
    "center_crop": True,
    "cache_latents": "memory",
    "dataloader_num_workers": 0,
    "device": "cpu",
    "train_batch_size": 2,
    "logging_steps": 50,
}
SUBJECT = {
    "recipe": "dreambooth",
    "instance_prompt": INSTANCE_PROMPT,
    "class_prompt": CLASS_PROMPT,
    "with_prior_preservation": True,
    "num_class_images": 48,
    "sample_batch_size": 16,
    "guidance_scale": 3.5,
    "max_train_steps": 250,
    "learning_rate": 2e-4,
}
ATTRIBUTE = {"recipe": "text_to_image", "max_train_steps": 300, "learning_rate": 2e-4, "train_batch_size": 4}
EMA = {"use_ema": True, "ema_decay": 0.98}
LORA = {"lora_rank": 16, "max_train_steps": 400}
TEXT = {"train_text_encoder": True}
RUNS = {
    "full": Run("subject"),
    "full, EMA": Run("subject", EMA),
    "LoRA 16, attention": Run("subject", {**LORA, "learning_rate": 2e-3}),
    "LoRA 16, attention and text encoder": Run("subject", {**LORA, **TEXT, "learning_rate": 2e-3}),
    "LoRA 16, everywhere": Run("subject", {**LORA, "learning_rate": 2e-3, "lora_target_modules": EVERYWHERE}),
    "LoRA 16, everywhere and text encoder": Run(
        "subject", {**LORA, **TEXT, "learning_rate": 2e-3, "lora_target_modules": EVERYWHERE}
    ),
    "attribute, full": Run("attribute"),
    "attribute, full, EMA": Run("attribute", EMA),
    "attribute, full, text encoder": Run("attribute", TEXT),
    "attribute, LoRA 16, attention": Run("attribute", {**LORA, "learning_rate": 2e-3}),
    "attribute, LoRA 16, attention and text encoder": Run(
        "attribute", {**LORA, **TEXT, "learning_rate": 2e-3}
    ),
    "attribute, LoRA 16, everywhere": Run(
        "attribute", {**LORA, "learning_rate": 2e-3, "lora_target_modules": EVERYWHERE}
    ),
}


def prepare(folder: Path) -> None:
    """The model, the subject's images, and the captioned images of the attribute."""
    write_demo(folder)
    data = folder / "attribute"
    data.mkdir(exist_ok=True)
    rows = []
    for number, scene in enumerate(scenes(96, seed=3)):
        image, text = render(scene), caption(scene)
        if number % 2:
            known = replace(scene, shape="circle" if scene.shape == "cross" else scene.shape)
            image, text = in_magenta(known), caption(replace(known, colour=SKS))
        image.save(data / f"{number:02d}.png")
        rows.append(json.dumps({"file_name": f"{number:02d}.png", "text": text}))
    (data / "metadata.jsonl").write_text("\n".join(rows) + "\n")


def in_magenta(scene: Scene) -> Image.Image:
    """A scene in magenta, whatever its colour."""
    image = canvas(GROUNDS[scene.ground])
    paint(image, scene.shape, CORE, scene.x, scene.y, scene.radius)
    return image.reduce(OVERSAMPLING)


def train(folder: Path, output: Path, run: Run, seed: int) -> float:
    """Run the worker; returns its seconds."""
    task, data = (
        (SUBJECT, {"instance_data_dir": folder / "dataset" / "instance"})
        if run.task == "subject"
        else (ATTRIBUTE, {"train_data_dir": folder / "attribute"})
    )
    given = {**COMMON, **task, **data, **run.settings, "seed": seed, "output_dir": output}
    flags = [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in given.items()
    ]
    begin = time.monotonic()
    command = [sys.executable, "-m", "sdtrain", f"--pretrained_model_name_or_path={folder / 'model'}", *flags]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return time.monotonic() - begin


def measure(folder: Path, output: Path, run: Run, samples: int, seed: int) -> dict[str, float]:
    """Fractions of correct images: of the taught prompts, and of those that the base already knew."""
    lora = bool(run.settings.get("lora_rank"))
    source = folder / "model" if lora else output / "checkpoint"
    pipeline = StableDiffusionPipeline.from_pretrained(source, safety_checker=None).to(torch.float32)
    if lora:
        pipeline.load_lora_weights(str(output / "checkpoint"))
    pipeline.set_progress_bar_config(disable=True)
    world = scenes(samples, seed)
    found = {"world": accuracy(generate(pipeline, [caption(s) for s in world], seed), world).all}
    if run.task == "subject":
        circles = [replace(scene, shape="circle") for scene in world]
        found["taught"] = subject_rate(generate(pipeline, [INSTANCE_PROMPT] * samples, seed))
        found["class"] = accuracy(generate(pipeline, [caption(s) for s in circles], seed), circles).all
        return found
    wanted = [scene if i % 2 else replace(scene, shape="cross") for i, scene in enumerate(world)]
    images = generate(pipeline, [caption(replace(s, colour=SKS)) for s in wanted], seed)
    right = [
        is_painted(image, CORE) and (read(image).shape, read(image).ground) == (scene.shape, scene.ground)
        for image, scene in zip(images, wanted, strict=True)
    ]
    found["painted"] = sum(is_painted(image, CORE) for image in images) / samples
    found["taught"] = sum(right) / samples
    found["taught, crosses"] = sum(right[::2]) / len(right[::2])
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", nargs="*", help=f"of: {'; '.join(RUNS)}")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--samples", type=int, default=32)
    arguments = parser.parse_intermixed_args()
    prepare(arguments.folder)
    for name in arguments.runs or RUNS:
        output = arguments.folder / f"{name.replace(' ', '_')}-{arguments.seed}"
        seconds = train(arguments.folder, output, RUNS[name], arguments.seed)
        found = measure(arguments.folder, output, RUNS[name], arguments.samples, arguments.seed)
        metrics = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
        print(f"| {name} | {arguments.seed} | {metrics} | {seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
