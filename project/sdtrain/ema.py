"""The exponential moving average of the trained weights (diffusers' EMAModel), by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import nn


class Ema:
    """EMA of named parameters, on their device, with diffusers' warm-up min(decay, (1 + n) / (10 + n))."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._average = EMAModel(list(parameters.values()), decay=decay, foreach=True)

    def update(self) -> None:
        """To be called after each optimiser step."""
        self._average.step(list(self._parameters.values()))

    def state(self) -> dict[str, torch.Tensor]:
        """The average by parameter name, with the number of updates, on the CPU."""
        weights = zip(self._parameters, self._average.shadow_params, strict=True)
        state = {name: weight.detach().cpu() for name, weight in weights}
        return {**state, "_updates": torch.tensor(self._average.optimization_step)}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Takes back what `state` gave."""
        self._average.optimization_step = int(state["_updates"])
        for name, weight in zip(self._parameters, self._average.shadow_params, strict=True):
            weight.copy_(state[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        parameters = list(self._parameters.values())
        self._average.store(parameters)
        self._average.copy_to(parameters)
        try:
            yield
        finally:
            self._average.restore(parameters)
