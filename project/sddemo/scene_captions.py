"""Captions in the forms that people write: full, partial, empty, and with words that mean nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from string import ascii_lowercase

from sddemo.scenes import Scene, article, caption

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
    form = rng.choices(("full", "no ground", "shape only", "no colour"), (65, 15, 15, 5))[0]
    shape, colour, ground = scene.shape, scene.colour, scene.ground
    if form == "full":
        text = caption(scene)
    elif form == "no ground":
        text = f"{article(colour)} {colour} {shape}"
    elif form == "shape only":
        text = f"a {shape}"
    else:
        text = f"a {shape} on a {ground} ground"
    stranger = None
    if rng.random() < 0.1:
        stranger = _random_word(rng)
        start, rest = text.split(" ", 1)
        text = f"{start} {stranger} {rest}"
    if rng.random() < 0.15:
        text = f"a {rng.choice(('photo', 'picture', 'drawing'))} of {text}"
    return Caption(
        text,
        shape=shape,
        colour=colour if form in ("full", "no ground") else None,
        ground=ground if form in ("full", "no colour") else None,
        stranger=stranger,
    )


def _random_word(rng: random.Random) -> str:
    while True:
        word = "".join(rng.choice(ascii_lowercase) for _ in range(3))
        if word not in (RESERVED, "the"):
            return word
