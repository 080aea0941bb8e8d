"""Optimisers of other libraries: what they are built with, and what is said when one is not installed."""

import sys
from types import SimpleNamespace

import pytest
import torch

from sdtrain.strategies import optimisers
from sdtrain.strategies.base import OptimSpec, ParameterGroup


def spec(name: str) -> OptimSpec:
    return OptimSpec((ParameterGroup("", 1e-3),), (0.8, 0.9), 0.1, 1e-7, 1.0, name)


def groups(rate: float = 1e-3) -> list[dict]:
    return [{"params": [torch.nn.Parameter(torch.ones(2, 2))], "lr": rate, "base_lr": rate}]


def test_adamw8bit_is_that_of_bitsandbytes(monkeypatch):
    given = {}

    def adamw8bit(params, **values):
        given.update(values, params=params)
        return "an optimiser"

    monkeypatch.setitem(
        sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=adamw8bit))
    )
    of = groups()
    assert optimisers.build(spec("adamw8bit"), of) == "an optimiser"
    assert given == {"params": of, "betas": (0.8, 0.9), "weight_decay": 0.1, "eps": 1e-7}


@pytest.mark.parametrize(("optimizer", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_a_missing_package_is_69_with_the_command_that_mends_it(
    train, monkeypatch, capsys, optimizer, package
):
    from sdjob import compat

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(compat, "_optimizer", lambda *_: [])  # which refuses 8 bits on a CPU
    train(code=69, optimizer=optimizer, learning_rate=1.0)
    error = capsys.readouterr().err
    assert f"pip install {package}" in error
    assert "Traceback" not in error


def test_adafactor_has_no_second_moment_of_full_size():
    of = groups()
    optimizer = optimisers.build(spec("adafactor"), of)
    of[0]["params"][0].grad = torch.ones(2, 2)
    optimizer.step()
    (state,) = optimizer.state.values()
    assert {"exp_avg_sq_row", "exp_avg_sq_col"} <= state.keys() and "exp_avg_sq" not in state


def test_only_what_prodigy_has_learnt_is_taken_from_a_checkpoint():
    now = [{"lr": 1.0, "weight_decay": 0.1, "d": 1e-6, "d0": 1e-6, "k": 0, "params": [0]}]
    saved = [{"lr": 0.5, "weight_decay": 0.0, "d": 3e-4, "d0": 1e-6, "k": 7, "params": [0], "d_hat": 2e-4}]
    assert optimisers.settings_of(now, saved) == [{**now[0], "d": 3e-4, "k": 7, "d_hat": 2e-4}]
