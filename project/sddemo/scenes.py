"""The synthetic world: one coloured shape on a coloured ground, 64 × 64 pixels, and the words for it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

SIZE = 64
OVERSAMPLING = 4  # rendered this many times larger, then averaged down: smooth edges

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, RGB] = {
    "red": (214, 32, 38),
    "orange": (255, 140, 16),
    "yellow": (250, 226, 48),
    "green": (34, 158, 62),
    "blue": (38, 72, 214),
}
GROUNDS: dict[str, RGB] = {
    "white": (246, 246, 246),
    "grey": (150, 150, 150),
    "black": (16, 16, 16),
    "beige": (224, 200, 160),
}
CROSS_ARM = 0.36  # half the width of an arm, in radii


@dataclass(frozen=True)
class Scene:
    """What an image shows; centre and radius in pixels."""

    shape: str
    colour: str
    ground: str
    x: float = SIZE / 2
    y: float = SIZE / 2
    radius: float = 19.0


def random_scene(rng: random.Random) -> Scene:
    """A scene with every attribute sampled uniformly; the shape stays inside the image."""
    return Scene(
        shape=rng.choice(SHAPES),
        colour=rng.choice(tuple(COLOURS)),
        ground=rng.choice(tuple(GROUNDS)),
        x=SIZE / 2 + rng.uniform(-4, 4),
        y=SIZE / 2 + rng.uniform(-4, 4),
        radius=rng.uniform(16, 22),
    )


def scenes(count: int, seed: int) -> list[Scene]:
    """`count` random scenes; the same for the same seed."""
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def canvas(ground: RGB) -> Image.Image:
    """An empty image, OVERSAMPLING times larger than the finished image."""
    return Image.new("RGB", (SIZE * OVERSAMPLING, SIZE * OVERSAMPLING), ground)


def paint(image: Image.Image, shape: str, colour: RGB, x: float, y: float, radius: float) -> None:
    """Paint one shape on an oversampled canvas; x, y and radius in pixels of the finished image."""
    cx, cy, r = (OVERSAMPLING * value for value in (x, y, radius))
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour)
    elif shape == "square":
        side = 0.88 * r  # a square of half side r would look larger than the other shapes
        pen.rectangle((cx - side, cy - side, cx + side, cy + side), fill=colour)
    elif shape == "triangle":
        pen.polygon([(cx, cy - r), (cx - r, cy + 0.8 * r), (cx + r, cy + 0.8 * r)], fill=colour)
    elif shape == "cross":
        arm = CROSS_ARM * r
        pen.rectangle((cx - r, cy - arm, cx + r, cy + arm), fill=colour)
        pen.rectangle((cx - arm, cy - r, cx + arm, cy + r), fill=colour)
    else:
        raise ValueError(f"unknown shape {shape!r}: not one of {', '.join(SHAPES)}")


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB image of SIZE × SIZE pixels."""
    image = canvas(GROUNDS[scene.ground])
    paint(image, scene.shape, COLOURS[scene.colour], scene.x, scene.y, scene.radius)
    return image.reduce(OVERSAMPLING)


def caption(scene: Scene) -> str:
    """The full caption: shape, colour and ground."""
    return f"{article(scene.colour)} {scene.colour} {scene.shape} on a {scene.ground} ground"


def article(word: str) -> str:
    """The English indefinite article for a word."""
    return "an" if word[0] in "aeiou" else "a"
