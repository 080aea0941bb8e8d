"""Text-to-image: images, each with its own caption."""

from __future__ import annotations

from sdtrain.data.streams import Stream
from sdtrain.recipes.base import RecipeInput


def streams(given: RecipeInput) -> tuple[Stream, ...]:
    return (Stream("captioned", given.images, prompt=None),)
