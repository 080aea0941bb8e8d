"""Captions in the forms that people write: full, partial, empty, and with words that mean nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from string import ascii_lowercase

from sddemo.scenes import Scene, article

RESERVED = "sks"  # the rare token of the demo: the base model never sees it


@dataclass(frozen=True)
class Caption:
    """A caption and what it says; None where it says nothing."""

    text: str
    shape: str | None = None
    colour: str | None = None
    ground: str | None = None
    stranger: str | None = None  # a word without meaning


def random_caption(scene: Scene, rng: random.Random) -> Caption:
    """A true caption of a scene: mostly the full one, 10 % empty, 10 % with a stranger among the words."""
    if rng.random() < 0.1:
        return Caption("")
    forms = ((True, True), (True, False), (False, False), (False, True))  # with its colour, with its ground
    has_colour, has_ground = rng.choices(forms, (65, 15, 15, 5))[0]
    text = f"{article(scene.colour)} {scene.colour} {scene.shape}" if has_colour else f"a {scene.shape}"
    if has_ground:
        text += f" on a {scene.ground} ground"
    stranger = None
    if rng.random() < 0.1:
        stranger = _random_word(rng)
        start, rest = text.split(" ", 1)
        text = f"{start} {stranger} {rest}"
    if rng.random() < 0.15:
        text = f"a {rng.choice(('photo', 'picture', 'drawing'))} of {text}"
    colour, ground = scene.colour if has_colour else None, scene.ground if has_ground else None
    return Caption(text, scene.shape, colour, ground, stranger)


def _random_word(rng: random.Random) -> str:
    while True:
        word = "".join(rng.choice(ascii_lowercase) for _ in range(3))
        if word not in (RESERVED, "the"):
            return word
