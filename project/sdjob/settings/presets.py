"""Defaults that depend on other settings: weaker than every source, stronger than the default of a setting.

One default cannot serve all: at the rate of a full fine-tune, a LoRA hardly changes in a whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sdjob.settings.optimizers import OPTIMIZERS, OptimizerFacts
from sdjob.settings.recipes import RECIPES, RecipeFacts
from sdjob.settings.run_spec import RunSpec


@dataclass(frozen=True)
class Preset:
    """A value of one field for some runs, and the settings that these have, in words."""

    field: str
    value: Any
    when: str
    applies: Callable[[RunSpec], bool]


def _rates(setting: str, table: Mapping[str, RecipeFacts] | Mapping[str, OptimizerFacts]) -> Iterator[Preset]:
    """A preset for each row that has a learning rate."""
    for name, facts in table.items():
        if facts.learning_rate is not None:
            yield Preset(
                "learning_rate", facts.learning_rate, f"{setting}={name}", partial(_is, setting, name)
            )


def _is(setting: str, value: str, spec: RunSpec) -> bool:
    return bool(getattr(spec, setting) == value)


# The first of several presets of a field applies. The rates are those of the diffusers examples and of the tutorials.
PRESETS = (
    *_rates("optimizer", OPTIMIZERS),
    Preset("learning_rate", 1e-4, "lora_rank above 0", lambda spec: spec.lora_rank > 0),
    *_rates("recipe", RECIPES),
)


def completed(spec: RunSpec) -> tuple[RunSpec, dict[str, str]]:
    """The spec with its presets in the fields that no source sets; field → why it has that value."""
    chosen: dict[str, Preset] = {}
    for preset in PRESETS:
        if preset.field not in spec.model_fields_set and preset.applies(spec):
            chosen.setdefault(preset.field, preset)
    values = {field: preset.value for field, preset in chosen.items()}
    return spec.model_copy(update=values), {field: preset.when for field, preset in chosen.items()}
