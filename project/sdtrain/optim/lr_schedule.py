"""The factor of the learning rates as a function of the optimizer step, so that no scheduler state is saved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.optimization import get_scheduler

from sdjob.settings.run_spec import RunSpec


def schedule(spec: RunSpec) -> Callable[[int], float]:
    """Step (0, 1, …) → factor, from diffusers' schedules; counted in optimizer steps, on any world size."""
    unused = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=spec.learning_rate)
    scheduler = get_scheduler(
        spec.lr_scheduler,
        unused,
        num_warmup_steps=spec.lr_warmup_steps,
        num_training_steps=spec.max_train_steps,
        num_cycles=spec.lr_num_cycles,
        power=spec.lr_power,
    )
    (factor,) = scheduler.lr_lambdas
    return lambda step: float(factor(step))
