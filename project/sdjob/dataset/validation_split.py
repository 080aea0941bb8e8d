"""The number of images that are held out for the validation loss."""

from __future__ import annotations

import math

from sdjob.dataset.formats import DatasetInfo
from sdjob.files import shown
from sdjob.problems import Problem, bad_input
from sdjob.settings.run_spec import RunSpec


def held_out(spec: RunSpec, num_examples: int) -> int:
    """Images held out of `num_examples`: with a fraction above 0 at least one, but never all."""
    if not spec.validation_split:
        return 0
    return min(num_examples - 1, max(1, math.floor(spec.validation_split * num_examples + 0.5)))


def trained_on(spec: RunSpec, num_examples: int) -> int:
    return num_examples - held_out(spec, num_examples)


def problems(spec: RunSpec, info: DatasetInfo) -> list[Problem]:
    """Why a dataset cannot be divided."""
    if not spec.validation_split or info.num_examples > 1:
        return []
    found = f"has one image, with validation_split={spec.validation_split:g}"
    return [bad_input(shown(info.path), found, "add images, or leave validation_split=0")]
