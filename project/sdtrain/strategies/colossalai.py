"""Colossal-AI's Booster: the parts that its two strategies share. ZeRO is colossalai_zero, Gemini colossalai_gemini.

Both compute with half-precision weights and update fp32 masters that are divided among the ranks; checkpoints hold
masters, optimizer state and EMA, so that resuming is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sdtrain.strategies.base import scale_learning_rates
from sdtrain.strategies.colossalai_import import importable
from sdtrain.strategies.shards import Range, Shards

with importable():
    from colossalai.booster import Booster
    from colossalai.booster.plugin import GeminiPlugin, LowLevelZeroPlugin
    from colossalai.zero.gemini import gemini_optimizer

__all__ = ["Booster", "GeminiPlugin", "LowLevelZeroPlugin", "gemini_optimizer"]

INITIAL_SCALE = 2.0**16  # as torch's GradScaler; ZeRO's own, 2**32, loses the first dozens of steps


def step(optimizer: Any, mixin: Any, factor: float, device: torch.device) -> torch.Tensor:
    """One update through the plugin, which clips; the norm is inf where fp16 gradients overflowed."""
    scale_learning_rates(optimizer.optim.param_groups, factor)
    scale = scaler_state(mixin).get("scale", 1.0)
    optimizer._current_grad_norm = None
    optimizer.step()
    optimizer.zero_grad()
    norm = optimizer.get_grad_norm()
    return torch.tensor(float("inf") if norm is None else float(norm) / scale, device=device)


def scaler_state(mixin: Any) -> dict[str, float]:
    """The state of the fp16 loss scale, by the names of torch's GradScaler; empty: none."""
    scaler = getattr(mixin, "grad_scaler", None)
    if scaler is None:
        return {}
    return {
        "scale": float(scaler.scale),
        "_growth_tracker": scaler._growth_step,
        "_hysteresis_step": scaler._hysteresis_step,
    }


def load_scaler_state(mixin: Any, values: Mapping[str, float]) -> None:
    """Restore what `scaler_state` of this strategy or torch's GradScaler of another one saved."""
    scaler = getattr(mixin, "grad_scaler", None)
    if scaler is not None and values:
        scaler._scale.fill_(values["scale"])
        scaler._growth_step = int(values["_growth_tracker"])
        scaler._hysteresis_step = int(values.get("_hysteresis_step", 0))


def copies(trained: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The weights in fp32: Colossal-AI makes its masters from weights that it has already rounded."""
    return {name: p.detach().to("cpu", copy=True) for name, p in trained.items()}


def parts(tensors: Mapping[str, torch.Tensor], ranges: Mapping[str, Range]) -> Shards:
    """This rank's shards of whole tensors."""
    return {name: part.of(tensors[name]) for name, part in ranges.items()}
