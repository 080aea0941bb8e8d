"""The exponential moving average (EMA) of the trainable weights, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """EMA of named tensors, on their device, with the warm-up of diffusers' EMAModel: min(decay, (1 + n) / (10 + n))
    from the second update on; the first copies the weights.

    The tensors are a strategy's masters, this rank's shards of them: so it follows fp32 weights, and a sharded
    strategy has a sharded EMA.
    """

    def __init__(self, masters: Mapping[str, torch.Tensor], decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self.shards = {name: master.detach().clone() for name, master in masters.items()}

    def update(self, masters: Mapping[str, torch.Tensor]) -> None:
        """Update after an optimizer step; where a strategy has moved its masters, the EMA follows."""
        weights = [masters[name].detach() for name in self.shards]
        for name, weight in zip(self.shards, weights, strict=True):
            self.shards[name] = self.shards[name].to(weight.device)
        self._updates += 1
        factor = min(self._decay, self._updates / (9 + self._updates)) if self._updates > 1 else 0.0
        # In one pass and without a copy of the weights, which EMAModel needs for their difference.
        average = get_ema_multi_avg_fn(factor)  # type: ignore[no-untyped-call]
        average(list(self.shards.values()), weights, self._updates)

    def resume(self, updates: int) -> None:
        """Resume after so many updates; the caller reads the shards from the checkpoint."""
        self._updates = updates
