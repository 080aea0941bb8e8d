"""Text-to-image: images, each with its own caption."""

from __future__ import annotations

from sdtrain.data.streams import Stream
from sdtrain.recipes.base import Recipe, RecipeInput


def _streams(given: RecipeInput) -> tuple[Stream, ...]:
    return (Stream("captioned", given.images, prompt=None),)


TEXT_TO_IMAGE = Recipe(streams=_streams)
