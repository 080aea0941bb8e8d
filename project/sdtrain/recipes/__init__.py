"""Recipes by the names that users type.

Start reading: base.py, then text_to_image.py.
May import: torch, sdjob, sdtrain.data.
"""

from __future__ import annotations

from sdtrain.recipes import dreambooth, text_to_image
from sdtrain.recipes.base import Recipe

RECIPES: dict[str, Recipe] = {"dreambooth": dreambooth.streams, "text_to_image": text_to_image.streams}
