"""Recipes by the names that users type.

Start reading: base.py, then text_to_image.py.
May import: torch, sdjob, sdtrain.data.
"""

from __future__ import annotations

from sdtrain.recipes.base import Recipe
from sdtrain.recipes.dreambooth import DREAMBOOTH
from sdtrain.recipes.text_to_image import TEXT_TO_IMAGE

RECIPES: dict[str, Recipe] = {"dreambooth": DREAMBOOTH, "text_to_image": TEXT_TO_IMAGE}
