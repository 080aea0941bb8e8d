"""The grid of validation images: a column of images per folder, a row per prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from sdjob.dataset.images import decode, size_of
from sdtrain.reporting.labels import label

_HEADER, _GAP, _LEAST_SIDE = 16, 8, 64  # pixels
_LEAST_COLUMN = 128  # pixels: the name of a step checkpoint fits above it
_MOST_PIXELS = 100_000_000  # of all images together: 380 of 512 x 512


def image_name(prompt: int, image: int) -> str:
    """File name of the image-th image of the prompt-th validation prompt."""
    return f"prompt{prompt:02d}-{image:02d}.png"


def grid(columns: Mapping[str, Path], prompts: Sequence[str], per_prompt: int) -> Image.Image:
    """Arrange the images of several folders side by side, by column title.

    The report and prompts.json have every prompt in full. Raises ImageError: others may have replaced an image.
    """
    first = size_of(next(iter(columns.values())) / image_name(0, 0))
    wide, high = _cell(first, per_prompt, len(columns) * per_prompt * len(prompts))
    column_width = per_prompt * wide
    width = len(columns) * (column_width + _GAP) - _GAP
    sheet = Image.new("RGB", (width, _HEADER + len(prompts) * (high + _HEADER)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (title, folder) in enumerate(columns.items()):
        left = column * (column_width + _GAP)
        pen.text((left + 2, 2), label(pen, title, f"model {column}", column_width - 4), "black")
        for row, prompt in enumerate(prompts):
            top = _HEADER + row * (high + _HEADER)
            pen.text((left + 2, top + 2), label(pen, prompt, f"prompt {row}", column_width - 4), "dimgray")
            for number in range(per_prompt):
                image = decode(folder / image_name(row, number)).resize((wide, high))
                sheet.paste(image, (left + number * wide, top + _HEADER))
    return sheet


def _cell(size: tuple[int, int], per_prompt: int, count: int) -> tuple[int, int]:
    """Width and height of each image in a sheet of `count`, which viewers must be able to open."""
    width, height = size
    least = max(_LEAST_SIDE, _LEAST_COLUMN / per_prompt)
    scale = min(max(1.0, least / width), math.sqrt(_MOST_PIXELS / (count * width * height)))
    return max(1, round(width * scale)), max(1, round(height * scale))
