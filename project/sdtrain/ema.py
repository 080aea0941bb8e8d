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
        self._names = tuple(masters)
        # EMAModel passes over what requires no gradient; masters may be detached views.
        self._average = EMAModel([_trained(m) for m in masters.values()], decay=decay, foreach=True)

    def update(self, masters: Mapping[str, torch.Tensor]) -> None:
        """To be called after each optimiser step; where a strategy has moved its masters, the average follows."""
        weights = [_trained(masters[name]) for name in self._names]
        for number, weight in enumerate(weights):
            self._average.shadow_params[number] = self._average.shadow_params[number].to(weight.device)
        self._average.step(weights)

    @property
    def shares(self) -> dict[str, torch.Tensor]:
        """The average by name, in the form of the masters."""
        return dict(zip(self._names, self._average.shadow_params, strict=True))

    def resume(self, updates: int) -> None:
        """Goes on after so many updates; the shares are overwritten by whoever reads the checkpoint."""
        self._average.optimization_step = updates


def _trained(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_(True)
