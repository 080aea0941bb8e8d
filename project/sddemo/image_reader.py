"""Read an image of the synthetic world by its pixels alone, to judge what a model has generated."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sddemo.scenes import COLOURS, CROSS_ARM, GROUNDS, RGB, SHAPES, SIZE
from sddemo.subject import CORE, RING

Pixels = NDArray[np.float32]  # [64, 64, 3], 0–255
Mask = NDArray[np.bool_]  # [64, 64]

MIN_CONTRAST = 40.0  # distance in RGB below which an image counts as empty
MAX_COLOUR_DISTANCE = 70.0  # a reading farther than this from every named colour has no name
MAX_SUBJECT_DISTANCE = 95.0  # wider: nothing else in the world comes near the subject's colours
MIN_SUBJECT_PIXELS = 120  # of its core, and of its ring; whole they have about 450 and 700
MIN_OVERLAP = 0.75  # intersection over union with the ideal shape
MAX_FRACTION = 0.6  # of the image; the world's largest shape covers 0.37
BORDER = 4  # pixels at the rim that show the ground


class Reading(NamedTuple):
    """What an image shows; None where it shows nothing that has a name."""

    shape: str | None
    colour: str | None
    ground: str | None


def read(image: Image.Image) -> Reading:
    """Name the shape, its colour and the ground."""
    pixels = _pixels(image)
    ground = _ground(pixels)
    mask = _foreground(pixels, ground)
    if mask is None:
        return Reading(None, None, _nearest(ground, GROUNDS))
    return Reading(
        _shape(mask), _nearest(np.median(pixels[mask], axis=0), COLOURS), _nearest(ground, GROUNDS)
    )


def shows_subject(image: Image.Image) -> bool:
    """Whether the image shows the subject: a magenta core inside a cyan ring."""
    pixels = _pixels(image)
    core, ring = (_distance(pixels, colour) < MAX_SUBJECT_DISTANCE for colour in (CORE, RING))
    if min(core.sum(), ring.sum()) < MIN_SUBJECT_PIXELS:
        return False
    (core_x, core_y), (ring_x, ring_y) = _centre(core), _centre(ring)
    ring_is_around = _spread(ring) > 1.2 * _spread(core)
    return bool(ring_is_around and abs(core_x - ring_x) < 6 and abs(core_y - ring_y) < 6)


def is_painted(image: Image.Image, colour: RGB) -> bool:
    """Whether what stands on the ground has this colour, named in the world or not."""
    pixels = _pixels(image)
    mask = _foreground(pixels, _ground(pixels))
    distance = None if mask is None else _distance(np.median(pixels[mask], axis=0), colour)
    return distance is not None and bool(distance < MAX_COLOUR_DISTANCE)


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)


def _distance(pixels: Pixels, colour: RGB | NDArray[np.float32]) -> NDArray[np.float32]:
    distance: NDArray[np.float32] = np.linalg.norm(pixels - np.asarray(colour, dtype=np.float32), axis=-1)
    return distance


def _nearest(colour: NDArray[np.float32], names: dict[str, RGB]) -> str | None:
    distances = {name: float(np.linalg.norm(colour - np.asarray(value))) for name, value in names.items()}
    best = min(distances, key=lambda name: distances[name])
    return best if distances[best] < MAX_COLOUR_DISTANCE else None


def _ground(pixels: Pixels) -> NDArray[np.float32]:
    rim = np.ones((SIZE, SIZE), dtype=bool)
    rim[BORDER:-BORDER, BORDER:-BORDER] = False
    return np.median(pixels[rim], axis=0)


def _foreground(pixels: Pixels, ground: NDArray[np.float32]) -> Mask | None:
    """The pixels that are not ground, or None for an empty image."""
    distance = _distance(pixels, ground)
    top = float(np.percentile(distance, 95))
    return None if top < MIN_CONTRAST else distance > top / 2


def _shape(mask: Mask) -> str | None:
    """The shape whose ideal form, stretched to the mask's bounding box, overlaps it best."""
    rows, columns = (np.flatnonzero(mask.sum(axis=axis) >= 2) for axis in (1, 0))
    if min(len(rows), len(columns)) < 12 or mask.mean() > MAX_FRACTION:
        return None
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    v = (y - (rows[0] + rows[-1]) / 2) / (len(rows) / 2)  # [-1, 1] from top to bottom of the box
    u = (x - (columns[0] + columns[-1]) / 2) / (len(columns) / 2)
    ideal: dict[str, Mask] = {
        "circle": u**2 + v**2 <= 1,
        "square": np.maximum(abs(u), abs(v)) <= 1,
        "triangle": (abs(u) <= (v + 1) / 2) & (abs(v) <= 1),
        "cross": (np.minimum(abs(u), abs(v)) <= CROSS_ARM) & (np.maximum(abs(u), abs(v)) <= 1),
    }
    overlap = {shape: float((mask & ideal[shape]).sum() / (mask | ideal[shape]).sum()) for shape in SHAPES}
    best = max(overlap, key=lambda shape: overlap[shape])
    return best if overlap[best] > MIN_OVERLAP else None


def _centre(mask: Mask) -> tuple[float, float]:
    y, x = np.nonzero(mask)
    return float(x.mean()), float(y.mean())


def _spread(mask: Mask) -> float:
    """Root mean square distance of a mask's pixels from their centre."""
    y, x = np.nonzero(mask)
    return float(np.sqrt(x.var() + y.var()))
