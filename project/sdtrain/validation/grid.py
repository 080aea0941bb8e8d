"""The grid of validation images: a column of images per folder, a row per prompt."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from sdtrain.reporting.labels import label

_HEADER, _GAP, _LEAST_SIDE = 16, 8, 64  # pixels


def image_name(prompt: int, image: int) -> str:
    """File name of the image-th image of the prompt-th validation prompt."""
    return f"prompt{prompt:02d}-{image:02d}.png"


def grid(columns: dict[str, Path], prompts: tuple[str, ...], per_prompt: int) -> Image.Image:
    """Arrange the images of several folders side by side, by column title.

    The report and prompts.json have every prompt in full.
    """
    with Image.open(next(iter(columns.values())) / image_name(0, 0)) as first:
        side = max(first.width, _LEAST_SIDE)
    width = len(columns) * (per_prompt * side + _GAP) - _GAP
    sheet = Image.new("RGB", (width, _HEADER + len(prompts) * (side + _HEADER)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (title, folder) in enumerate(columns.items()):
        left = column * (per_prompt * side + _GAP)
        pen.text((left + 2, 2), title, "black")
        for row, prompt in enumerate(prompts):
            top = _HEADER + row * (side + _HEADER)
            pen.text(
                (left + 2, top + 2), label(pen, prompt, f"prompt {row}", per_prompt * side - 4), "dimgray"
            )
            for number in range(per_prompt):
                with Image.open(folder / image_name(row, number)) as image:
                    sheet.paste(image.resize((side, side)), (left + number * side, top + _HEADER))
    return sheet
