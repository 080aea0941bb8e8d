"""What a recipe takes where nobody says otherwise: weaker than every source, stronger than a plain default.

One default cannot serve all: at the rate of a full fine-tune, a LoRA moves by next to nothing in a whole run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sdjob.settings.recipes import RECIPES
from sdjob.settings.run_spec import RunSpec


def _has_recipe(name: str, spec: RunSpec) -> bool:
    return spec.recipe == name


@dataclass(frozen=True)
class Preset:
    """A value of one field for some runs, with the words that name these."""

    field: str
    value: Any
    when: str
    applies: Callable[[RunSpec], bool]


# Of several presets of a field the first counts. The rates are those of the diffusers examples and of the tutorials.
PRESETS = (
    Preset("learning_rate", 1.0, "optimizer=prodigy", lambda spec: spec.optimizer == "prodigy"),
    Preset("learning_rate", 1e-4, "lora_rank above 0", lambda spec: spec.lora_rank > 0),
    *(
        Preset("learning_rate", facts.learning_rate, f"recipe={name}", partial(_has_recipe, name))
        for name, facts in RECIPES.items()
        if facts.learning_rate is not None
    ),
)


def completed(spec: RunSpec) -> tuple[RunSpec, dict[str, str]]:
    """The spec with the presets of its kind in the fields that nobody set; field → which runs have that value."""
    chosen: dict[str, Preset] = {}
    for preset in PRESETS:
        if preset.field not in spec.model_fields_set and preset.applies(spec):
            chosen.setdefault(preset.field, preset)
    values = {field: preset.value for field, preset in chosen.items()}
    return spec.model_copy(update=values), {field: preset.when for field, preset in chosen.items()}
