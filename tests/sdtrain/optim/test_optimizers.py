"""Tests of optimizers: what those of other libraries are built with, and the message when one is not installed."""

import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from sdtrain.optim import optimizers
from sdtrain.strategies.base import OptimSpec, ParameterGroup
from tests.support.worker import losses


def spec(name: str) -> OptimSpec:
    return OptimSpec((ParameterGroup("", 1e-3),), (0.8, 0.9), 0.1, 1e-7, 1.0, name)


def groups(rate: float = 1e-3) -> list[dict]:
    return [{"params": [torch.nn.Parameter(torch.ones(2, 2))], "lr": rate, "base_lr": rate}]


def test_adamw8bit_is_that_of_bitsandbytes(monkeypatch):
    given = {}

    def adamw8bit(params, **values):
        given.update(values, params=params)
        return "an optimizer"

    monkeypatch.setitem(
        sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=adamw8bit))
    )
    of = groups()
    assert optimizers.build(spec("adamw8bit"), of) == "an optimizer"
    assert given == {"params": of, "betas": (0.8, 0.9), "weight_decay": 0.1, "eps": 1e-7}


@pytest.mark.parametrize(("optimizer", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_a_missing_package_is_69_with_the_command_that_installs_it(
    train, monkeypatch, capsys, optimizer, package
):
    monkeypatch.setitem(sys.modules, package, None)
    train(code=69, optimizer=optimizer, learning_rate=1.0)
    error = capsys.readouterr().err
    assert f"pip install {package}" in error
    assert "Traceback" not in error


needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install bitsandbytes==0.50.2",
)


@needs_bitsandbytes
def test_adamw8bit_follows_adamw_with_a_quarter_of_its_memory():
    """On this device: the real one, on a weight of the size from which on its state has 8 bits."""
    torch.manual_seed(0)
    start = torch.randn(64, 128)
    trained = {name: torch.nn.Parameter(start.clone()) for name in ("adamw", "adamw8bit")}
    built = {
        name: optimizers.build(spec(name), [{"params": [weight], "lr": 1e-3, "base_lr": 1e-3}])
        for name, weight in trained.items()
    }
    for step in range(20):
        gradient = torch.randn(start.shape, generator=torch.Generator().manual_seed(step)) + 1
        for name, weight in trained.items():
            weight.grad = gradient.clone()
            built[name].step()
    way = (trained["adamw"] - start).abs().mean()
    assert (trained["adamw8bit"] - trained["adamw"]).abs().mean() < 0.02 * way
    state = built["adamw8bit"].state[trained["adamw8bit"]]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8


@needs_bitsandbytes
def test_a_run_with_adamw8bit_goes_on_as_if_it_had_never_stopped(train, capsys):
    undisturbed = train("undisturbed", optimizer="adamw8bit", max_train_steps=4)
    train("stopped", optimizer="adamw8bit", max_train_steps=2)
    assert losses(train("stopped", optimizer="adamw8bit", max_train_steps=4)) == losses(undisturbed)
    plain = losses(train("plain", max_train_steps=4))
    assert losses(undisturbed) == pytest.approx(plain, rel=0.02) and losses(undisturbed) != plain


def test_adafactor_has_no_second_moment_of_full_size():
    of = groups()
    optimizer = optimizers.build(spec("adafactor"), of)
    of[0]["params"][0].grad = torch.ones(2, 2)
    optimizer.step()
    (state,) = optimizer.state.values()
    assert {"exp_avg_sq_row", "exp_avg_sq_col"} <= state.keys() and "exp_avg_sq" not in state


def test_only_what_prodigy_has_learned_is_taken_from_a_checkpoint():
    now = [{"lr": 1.0, "weight_decay": 0.1, "d": 1e-6, "d0": 1e-6, "k": 0, "params": [0]}]
    saved = [{"lr": 0.5, "weight_decay": 0.0, "d": 3e-4, "d0": 1e-6, "k": 7, "params": [0], "d_hat": 2e-4}]
    assert optimizers.groups_to_resume(now, saved) == [{**now[0], "d": 3e-4, "k": 7, "d_hat": 2e-4}]
