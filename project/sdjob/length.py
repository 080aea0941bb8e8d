"""The arithmetic of batch and length, the same for the plan and for the run."""

from __future__ import annotations

import math

from sdjob.spec import RunSpec


def global_batch(spec: RunSpec, world_size: int) -> int:
    """Samples per optimiser step: per device × accumulation × processes."""
    return spec.train_batch_size * spec.gradient_accumulation_steps * world_size


def steps_of(epochs: int, spec: RunSpec, num_examples: int, world_size: int) -> int:
    """Optimiser steps of so many passes over the data; the last step may reach into the next pass."""
    return math.ceil(epochs * num_examples / global_batch(spec, world_size))
