"""The image reader is right on rendered scenes, also on damaged ones, and finds nothing where there is nothing.

Tests of scenes and subject too.
"""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sddemo.image_reader import Reading, read, shows_subject
from sddemo.scenes import COLOURS, GROUNDS, SIZE, Scene, render, scenes
from sddemo.subject import instance_images


def as_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer)


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 15, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1))


DAMAGES = [lambda image: image, as_jpeg, noisy, blurred]


@pytest.mark.parametrize("damage", DAMAGES, ids=["intact", "jpeg", "noise", "blur"])
def test_scenes_are_read_right(damage: Callable[[Image.Image], Image.Image]) -> None:
    wanted = scenes(200, seed=7)
    right = sum(
        read(damage(render(scene))) == Reading(scene.shape, scene.colour, scene.ground) for scene in wanted
    )
    assert right >= 0.99 * len(wanted)


@pytest.mark.parametrize("damage", DAMAGES, ids=["intact", "jpeg", "noise", "blur"])
def test_the_subject_is_seen_in_its_own_images_and_in_no_other(
    damage: Callable[[Image.Image], Image.Image],
) -> None:
    assert all(shows_subject(damage(image)) for image in instance_images())
    assert not any(shows_subject(damage(render(scene))) for scene in scenes(200, seed=8))


@pytest.mark.parametrize("ground", GROUNDS)
def test_an_empty_image_has_no_shape(ground: str) -> None:
    assert read(Image.new("RGB", (SIZE, SIZE), GROUNDS[ground])) == Reading(None, None, ground)


def test_noise_has_no_shape() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    assert read(Image.fromarray(noise)).shape is None


def test_the_subject_in_two_separate_patches_does_not_count() -> None:
    """The ring's colour must lie around the core, not beside it."""
    canvas = Image.new("RGB", (SIZE, SIZE), GROUNDS["white"])
    canvas.paste((226, 30, 190), (4, 16, 30, 48))
    canvas.paste((40, 214, 226), (34, 16, 60, 48))
    assert not shows_subject(canvas)


def test_larger_images_are_read_too() -> None:
    scene = Scene("triangle", "blue", "beige")
    assert read(render(scene).resize((512, 512))) == Reading("triangle", "blue", "beige")


def test_every_colour_is_far_from_every_other() -> None:
    """The reader's names, and the trained model's, stay apart only if the colours do."""
    for names in (COLOURS, GROUNDS):
        values = np.array(list(names.values()), dtype=float)
        distances = np.linalg.norm(values[:, None] - values[None], axis=-1)
        assert distances[~np.eye(len(values), dtype=bool)].min() > 80
