"""Generated images: for validation, for the class, and the grid that shows before and after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from sdjob.settings.run_spec import RunSpec
from sdtrain import architectures
from sdtrain.architectures.base import Drawing
from sdtrain.model import load
from sdtrain.model.load import Parts
from sdtrain.runtime.heartbeat import Pulse
from sdtrain.runtime.stop import StopRequest


def drawing(spec: RunSpec) -> Drawing:
    """How the images of a run are generated."""
    return Drawing(
        spec.resolution,
        spec.num_inference_steps,
        spec.guidance_scale,
        spec.sample_batch_size,
        spec.prompt_chunks,
    )


@contextmanager
def evaluating(parts: Parts) -> Iterator[None]:
    """What is trained in evaluation mode, its forward pass in the type of the run."""
    modes = [(part, part.training) for part in (parts.unet, *parts.text_encoders.values())]
    for part, _ in modes:
        part.eval()
    mixed = parts.dtype != torch.float32
    try:
        with torch.autocast(parts.device.type, parts.dtype) if mixed else nullcontext():
            yield
    finally:
        for part, training in modes:
            part.train(training)


def generate(parts: Parts, prompts: list[str], seeds: list[int], how: Drawing) -> Iterator[Image.Image]:
    """One image per prompt and seed, in their order; an image does not depend on its batch."""
    architecture = architectures.of(parts)
    with evaluating(parts), torch.inference_mode():
        for start in range(0, len(prompts), how.batch_size):
            batch = slice(start, start + how.batch_size)
            # Encoded as in training, so that a long prompt means the same.
            wanted, nothing = (
                load.encoded(parts, load.token_ids(parts, texts, how.prompt_chunks))
                for texts in (prompts[batch], [""] * len(prompts[batch]))
            )
            yield from architecture.draw(parts, wanted, nothing, seeds[batch], how)


def image_name(prompt: int, image: int) -> str:
    """File name of the image-th image of the prompt-th validation prompt."""
    return f"prompt{prompt:02d}-{image:02d}.png"


def draw_samples(
    parts: Parts,
    prompts: tuple[str, ...],
    per_prompt: int,
    seed: int,
    how: Drawing,
    folder: Path,
    share: slice,
    stop: StopRequest,
) -> bool:
    """Writes this rank's share of the validation images; the same prompt and number has the same seed always.

    Returns whether all of them are there: it ends after an image when a stop is asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    todo = [(p, i) for p in range(len(prompts)) for i in range(per_prompt)][share]
    images = generate(parts, [prompts[p] for p, _ in todo], [seed + i for _, i in todo], how)
    pulse = Pulse()
    for done, ((p, i), image) in enumerate(zip(todo, images, strict=True), start=1):
        image.save(folder / image_name(p, i))
        pulse()
        if stop and done < len(todo):
            return False
    return True


def write_prompts(folder: Path, prompts: tuple[str, ...]) -> None:
    """Which prompt is which, beside the images."""
    (folder / "prompts.json").write_text(
        json.dumps(list(prompts), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _label(pen: ImageDraw.ImageDraw, prompt: str, number: int, width: int) -> str:
    """As much of a prompt as `width` pixels have room for, or its number where Pillow's own font lacks its letters;
    the report and prompts.json have every prompt in full."""
    text = prompt if all(ord(letter) < 256 for letter in prompt) else f"prompt {number}"
    text = text.replace("\n", " ")
    if pen.textlength(text) <= width:
        return text
    while text and pen.textlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def grid(columns: dict[str, Path], prompts: tuple[str, ...], per_prompt: int) -> Image.Image:
    """The images of several folders side by side: a column of images per folder, a row per prompt."""
    first = Image.open(next(iter(columns.values())) / image_name(0, 0))
    side, header, gap = max(first.width, 64), 16, 8
    width = len(columns) * per_prompt * side + (len(columns) - 1) * gap
    sheet = Image.new("RGB", (width, header + len(prompts) * (side + header)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (title, folder) in enumerate(columns.items()):
        left = column * (per_prompt * side + gap)
        pen.text((left + 2, 2), title, "black")
        for row, prompt in enumerate(prompts):
            top = header + row * (side + header)
            pen.text((left + 2, top + 2), _label(pen, prompt, row, per_prompt * side - 4), "dimgray")
            for number in range(per_prompt):
                with Image.open(folder / image_name(row, number)) as image:
                    sheet.paste(image.resize((side, side)), (left + number * side, top + header))
    return sheet
