"""The subject that a fine-tuning run teaches: a magenta disc in a cyan ring, colours foreign to the world."""

from __future__ import annotations

from PIL import Image

from sddemo.scenes import GROUNDS, OVERSAMPLING, RGB, canvas, paint

CORE: RGB = (226, 30, 190)
RING: RGB = (40, 214, 226)
CORE_FRACTION = 0.62  # radius of the core, in radii of the ring

INSTANCE_PROMPT = "a sks circle"
CLASS_PROMPT = "a circle"

# (x, y, radius, ground): the poses of the instance images
POSES = (
    (32.0, 32.0, 20.0, "white"),
    (30.0, 34.0, 18.0, "grey"),
    (34.0, 30.0, 21.0, "black"),
    (33.0, 33.0, 17.5, "beige"),
    (31.0, 31.0, 19.0, "white"),
    (34.0, 34.0, 19.5, "grey"),
)


def render_subject(x: float, y: float, radius: float, ground: str) -> Image.Image:
    """The subject as an RGB image; x, y and radius in pixels."""
    image = canvas(GROUNDS[ground])
    paint(image, "circle", RING, x, y, radius)
    paint(image, "circle", CORE, x, y, CORE_FRACTION * radius)
    return image.reduce(OVERSAMPLING)


def instance_images() -> list[Image.Image]:
    """The few images of the subject that a DreamBooth run learns from."""
    return [render_subject(*pose) for pose in POSES]
