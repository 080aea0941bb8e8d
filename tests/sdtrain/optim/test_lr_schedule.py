"""The factor of the learning rates at each step, against the schedules' formulas."""

import math

import pytest

from sdjob.settings.run_spec import RunSpec
from sdtrain.optim.lr_schedule import schedule

PEAK = 2e-3
END = 1e-7 / PEAK  # of the polynomial schedule


def cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


# of 10 steps, 2 of them warm-up where the schedule has one: step → fraction of the peak
EXPECTED = {
    "constant": {0: 1, 5: 1, 9: 1},
    "constant_with_warmup": {0: 0, 1: 0.5, 2: 1, 9: 1},
    "linear": {0: 0, 1: 0.5, 2: 1, 6: 0.5, 9: 1 / 8},
    "cosine": {0: 0, 1: 0.5, 2: 1, 6: cosine(0.5), 9: cosine(7 / 8)},
    "cosine_with_restarts": {0: 0, 1: 0.5, 2: 1, 6: cosine(0.5), 9: cosine(7 / 8)},
    "polynomial": {0: 0, 1: 0.5, 2: 1, 6: 0.5 * (1 - END) + END, 9: (1 - END) / 8 + END},
}


def spec(**settings) -> RunSpec:
    given = {"learning_rate": PEAK, "max_train_steps": 10, **settings}
    return RunSpec(pretrained_model_name_or_path="m", output_dir="o", **given)


@pytest.mark.parametrize("name", EXPECTED)
def test_schedule(name):
    factor = schedule(spec(lr_scheduler=name, lr_warmup_steps=0 if name == "constant" else 2))
    found = {step: factor(step) for step in EXPECTED[name]}
    assert found == pytest.approx(EXPECTED[name], abs=1e-9)


def test_restarts_and_powers():
    restarts = schedule(spec(lr_scheduler="cosine_with_restarts", lr_num_cycles=2, lr_warmup_steps=2))
    found = [restarts(step) for step in range(2, 10)]
    assert found == pytest.approx([cosine(k / 4) for k in range(4)] * 2)
    power = schedule(spec(lr_scheduler="polynomial", lr_power=2.0))
    assert power(5) == pytest.approx((1 - END) * 0.25 + END)


def test_any_step_can_be_asked_for_in_any_order():
    factor = schedule(spec(lr_scheduler="linear"))
    assert [factor(9), factor(0), factor(5), factor(0)] == pytest.approx([1 / 10, 1, 1 / 2, 1])


def test_processes_and_accumulation_do_not_change_it(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    factor = schedule(spec(lr_scheduler="linear", gradient_accumulation_steps=4, train_batch_size=2))
    assert factor(5) == pytest.approx(1 / 2)
