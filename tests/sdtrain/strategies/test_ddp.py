"""The native strategy: what of a checkpoint is taken back where the precision has changed."""

from dataclasses import replace

import pytest
import torch

from sdtrain.strategies.base import OptimSpec, ParameterGroup
from sdtrain.strategies.ddp import Native

OPTIM = OptimSpec(
    groups=(ParameterGroup("", 1e-3),), betas=(0.9, 0.99), weight_decay=0.0, epsilon=1e-8, max_grad_norm=1.0
)
CPU = torch.device("cpu")


def prepared(precision: str) -> Native:
    strategy = Native(precision, CPU, world_size=1)
    strategy.prepare(torch.nn.Linear(2, 1), OPTIM)
    return strategy


def test_a_checkpoint_without_a_scaler_is_resumed_in_fp16(tmp_path):
    saved = prepared("bf16")
    saved.save(tmp_path, ema=None)
    other = prepared("fp16")
    other.load(tmp_path, ema=None)
    torch.testing.assert_close(other.masters(), saved.masters(), rtol=0, atol=0)


def test_the_scaler_of_an_fp16_run_is_taken_back(tmp_path):
    saved = prepared("fp16")
    saved._scaler.load_state_dict({**saved._scaler.state_dict(), "scale": 128.0})
    saved.save(tmp_path, ema=None)
    other = prepared("fp16")
    other.load(tmp_path, ema=None)
    assert other._scaler.state_dict()["scale"] == 128.0


def test_each_group_has_its_own_rate_times_the_factor_of_the_schedule():
    """AdamW's first step is the learning rate itself, whatever the gradient."""
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1), "b": torch.nn.Linear(1, 1)})
    strategy = Native("no", CPU, world_size=1)
    groups = (ParameterGroup("a.", 0.5), ParameterGroup("b.", 0.25))
    strategy.prepare(model, replace(OPTIM, groups=groups, max_grad_norm=0.0))
    before = {name: weight.clone() for name, weight in strategy.masters().items()}
    strategy.backward(sum(parameter.sum() for parameter in model.parameters()))
    strategy.step(0.5)
    moved = {name: (before[name] - weight).item() for name, weight in strategy.masters().items()}
    assert moved == pytest.approx({"a.weight": 0.25, "a.bias": 0.25, "b.weight": 0.125, "b.bias": 0.125})


def test_applied_lends_other_weights_and_gives_the_masters_back_even_after_an_error():
    strategy = prepared("no")
    before = {name: weight.clone() for name, weight in strategy.masters().items()}
    others = {name: weight + 1 for name, weight in before.items()}
    with pytest.raises(KeyError), strategy.applied(others):
        torch.testing.assert_close(strategy.masters(), others)
        raise KeyError
    torch.testing.assert_close(strategy.masters(), before, rtol=0, atol=0)
