"""The arithmetic of batch and length, for the plan and for the run."""

from __future__ import annotations

import math

from sdjob.settings.run_spec import RunSpec


def global_batch(spec: RunSpec, world_size: int) -> int:
    """Samples per optimizer step: per device × accumulation × processes."""
    return spec.train_batch_size * spec.gradient_accumulation_steps * world_size


def images_of_batch(spec: RunSpec) -> int:
    """Images of one batch on one device; with prior preservation each has one of the class."""
    return spec.train_batch_size * (2 if spec.with_prior_preservation else 1)


def by_epochs(spec: RunSpec) -> bool:
    """Whether num_train_epochs decides how long a run is: a number of steps that is set comes first."""
    return spec.num_train_epochs is not None and "max_train_steps" not in spec.model_fields_set


def steps_of(
    epochs: int, spec: RunSpec, num_examples: int, world_size: int, *, step: int = 0, samples: int = 0
) -> int:
    """Optimizer steps of so many passes over the data; the last step may reach into the next pass.

    `step`, `samples`: steps and samples before a resume, perhaps with another batch size.
    """
    left = max(0, epochs * num_examples - samples)
    return step + math.ceil(left / global_batch(spec, world_size))
