"""How to load a result, as text to copy: for the model card and the page."""

from __future__ import annotations

import shlex

from sdjob.formatting import json_text
from sdjob.model.single_file import SUFFIXES
from sdjob.model.trainable import LORA_FILE


def python(base: str, class_name: str, prompt: str, folder: str, *, lora: bool) -> str:
    """Python that loads the result in `folder` and generates an image.

    `base`: the model that a LoRA belongs to. Only the pipeline's own class, `class_name`, reads a single file.
    """
    name, load = "DiffusionPipeline", f"DiffusionPipeline.from_pretrained({json_text(folder)})"
    if lora and base.endswith(SUFFIXES):
        name, load = class_name, f"{class_name}.from_single_file({json_text(base)})"
    elif lora:
        load = f"DiffusionPipeline.from_pretrained({json_text(base)})"
    weights = f'pipeline.load_lora_weights({json_text(folder)}, weight_name="{LORA_FILE}")'
    lines = [
        f"from diffusers import {name}",
        "",
        f"pipeline = {load}",
        *([weights] if lora else []),
        f"image = pipeline({json_text(prompt)}).images[0]",
        'image.save("image.png")',
    ]
    return "\n".join(lines)


def command(folder: str, prompt: str) -> str:
    """The command line that generates images from the result."""
    return f"bash train.sh generate {shlex.quote(folder)} --prompts {shlex.quote(prompt)} --output images"
