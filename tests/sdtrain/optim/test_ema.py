"""The moving average against one written by hand."""

import pytest
import torch
from torch import nn

from sdtrain.optim.ema import Ema


def parameters(value: float) -> dict[str, nn.Parameter]:
    return {"b": nn.Parameter(torch.full((2,), value)), "a": nn.Parameter(torch.full((3, 1), -value))}


def moved(weights: dict[str, nn.Parameter], by: float) -> None:
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(by)


def test_follows_the_formula_with_warm_up_and_largest_decay():
    weights, decay = parameters(1.0), 0.3
    ema, average = Ema(weights, decay), 1.0
    for n in range(1, 8):
        moved(weights, 1.0)
        ema.update(weights)
        # diffusers counts from the second update on: the first takes the weights as they are
        factor = min(decay, n / (9 + n)) if n > 1 else 0.0
        average = factor * average + (1 - factor) * weights["b"][0].item()
        assert ema.shards["b"].tolist() == pytest.approx([average] * 2, rel=1e-6)


def test_state_goes_on_where_it_was():
    weights = parameters(1.0)
    ema = Ema(weights, 0.9)
    for _ in range(3):
        moved(weights, 1.0)
        ema.update(weights)
    again_weights = {name: nn.Parameter(weight.detach().clone()) for name, weight in weights.items()}
    again = Ema(again_weights, 0.9)
    for name, shard in again.shards.items():
        shard.copy_(ema.shards[name])
    again.resume(updates=3)
    for both in ((weights, ema), (again_weights, again)):
        moved(both[0], 0.5)
        both[1].update(both[0])
    for name, value in ema.shards.items():
        assert torch.equal(again.shards[name], value)
