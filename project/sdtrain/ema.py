"""The exponential moving average of the trained weights (diffusers' EMAModel), by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.training_utils import EMAModel


class Ema:
    """EMA of named tensors, on their device, with diffusers' warm-up min(decay, (1 + n) / (10 + n)).

    The tensors are a strategy's masters, this rank's share of them: so it follows fp32 weights, and a
    sharded strategy has a sharded average.
    """

    def __init__(self, masters: Mapping[str, torch.Tensor], decay: float) -> None:
        self._masters = dict(masters)
        # EMAModel passes over what requires no gradient; masters may be detached views.
        self._average = EMAModel([_trained(m) for m in self._masters.values()], decay=decay, foreach=True)

    def update(self) -> None:
        """To be called after each optimiser step."""
        self._average.step([_trained(master) for master in self._masters.values()])

    @property
    def shares(self) -> dict[str, torch.Tensor]:
        """The average by name, in the form of the masters."""
        return dict(zip(self._masters, self._average.shadow_params, strict=True))

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the average by name, with the number of updates, on the CPU."""
        state = {name: weight.detach().to("cpu", copy=True) for name, weight in self.shares.items()}
        return {**state, "_updates": torch.tensor(self._average.optimization_step)}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state` gave."""
        self._average.optimization_step = int(state["_updates"])
        for name, weight in self.shares.items():
            weight.copy_(state[name])


def _trained(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_(True)
