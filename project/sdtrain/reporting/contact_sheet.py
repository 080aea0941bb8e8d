"""The contact sheet of a run: its first training images as the trainer sees them, after all transforms, with prompts.

Written as an image, with the prompts in full in a JSON file next to it: the built-in font of Pillow has Latin letters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image, ImageDraw

from sdjob import writing
from sdtrain.data.streams import StreamSet
from sdtrain.reporting.labels import label, visible
from sdtrain.training import Training

_COLUMNS, _ROWS = 4, 4  # at most, of each stream
_MOST, _LEAST = 256, 128  # pixels, of a tile's side
_LINE, _GAP = 14, 8  # pixels


@dataclass(frozen=True)
class Tile:
    """A training image and its prompt."""

    image: Image.Image
    prompt: str


def write(training: Training, position: int) -> None:
    """Write the sheet of the images from a position on, also to the tracker. Never fails: it is not needed to train.

    A resumed run keeps that of its first start.
    """
    context = training.context
    layout = context.layout
    if not context.world.is_main or (context.first_step and layout.inputs.exists()):
        return
    try:
        sections = tiles_of(training.examples, position)
        sheet = contact_sheet(sections)
        prompts = [tile.prompt for section in sections.values() for tile in section]
        layout.make(layout.samples)
        writing.write_png(layout.inputs, sheet)
        writing.write_text(layout.input_prompts, json.dumps(prompts, indent=1, ensure_ascii=False) + "\n")
        training.tracker.image("training images", sheet, context.first_step)
        numbered = (f"    {number}: {visible(prompt)}" for number, prompt in enumerate(prompts))
        training.tracker.text("training images", "\n".join(numbered))
    except Exception as error:  # whatever is wrong with an image, the first steps meet it too, and say it
        context.world.say(f"no contact sheet in {layout.samples}: {error}")


def tiles_of(examples: StreamSet, position: int) -> dict[str, list[Tile]]:
    """The first images of each stream from a position on, in the order of training, none twice in an epoch.

    Images whose latents are cached are read again, through the same transforms.
    """
    streams = tuple(
        replace(stream, images=replace(stream.images, latents=None)) for stream in examples.streams
    )
    read = replace(examples, streams=streams, encodings=None, takes_sizes=False, random=None, tokenize=None)
    counts = {stream.name: min(_COLUMNS * _ROWS, len(stream.images)) for stream in streams}
    tiles: dict[str, list[Tile]] = {name: [] for name in counts}
    for number in range(max(counts.values())):
        for name, example in zip(counts, read[position + number], strict=True):
            if number < counts[name]:
                tiles[name].append(Tile(from_tensor(example["pixels"]), example["prompt"]))
    return tiles


def from_tensor(pixels: torch.Tensor) -> Image.Image:
    """uint8 [3, height, width] → the RGB image that became it."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def contact_sheet(sections: dict[str, list[Tile]]) -> Image.Image:
    """The tiles in rows, each above its prompt; with several sections, each below its name."""
    every = [tile for tiles in sections.values() for tile in tiles]
    side = max(_LEAST, min(_MOST, max(max(tile.image.size) for tile in every)))
    columns = min(_COLUMNS, len(every))
    rows = {name: math.ceil(len(tiles) / columns) for name, tiles in sections.items()}
    heading = _LINE if len(sections) > 1 else 0
    height = sum(heading + count * (side + _LINE + _GAP) for count in rows.values())
    sheet = Image.new("RGB", (columns * (side + _GAP) + _GAP, height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    top, number = _GAP, 0
    for name, tiles in sections.items():
        if heading:
            pen.text((_GAP, top), f"{name} images", "black")
        top += heading
        for row in _in_rows(tiles, columns):
            for column, tile in enumerate(row):
                _draw(sheet, pen, tile, (_GAP + column * (side + _GAP), top), side, number)
                number += 1
            top += side + _LINE + _GAP
    return sheet


def _in_rows(tiles: Sequence[Tile], columns: int) -> Iterator[Sequence[Tile]]:
    return (tiles[first : first + columns] for first in range(0, len(tiles), columns))


def _draw(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, at: tuple[int, int], side: int, number: int
) -> None:
    """A tile in the corner of its square; the pixels of a small image become squares."""
    image, larger = tile.image, side // max(tile.image.size)
    if larger:
        image = image.resize((image.width * larger, image.height * larger), Image.Resampling.NEAREST)
    else:
        image = image.copy()
        image.thumbnail((side, side))
    sheet.paste(image, at)
    text = label(pen, tile.prompt or "(empty prompt)", f"prompt {number}", side)
    pen.text((at[0], at[1] + side + 1), text, "dimgray")
