"""The losses of the steps: summed for the whole run, and a mean for people who watch."""

import pytest
import torch

from sdtrain.reporting.metrics import Losses, RunningMean

CPU = torch.device("cpu")


def test_the_mean_has_no_bias_towards_zero():
    mean = RunningMean()
    assert [mean.add(2.0) for _ in range(3)] == pytest.approx([2.0, 2.0, 2.0])


def test_the_mean_forgets():
    mean = RunningMean(decay=0.5)
    assert [mean.add(value) for value in (0.0, 3.0, 3.0)] == pytest.approx([0.0, 2.0, 18 / 7])


def test_losses_of_the_steps_since_a_state():
    losses = Losses(CPU, None)
    losses.add(torch.tensor(1.0), applied=True)
    losses.add(torch.tensor(2.0), applied=False)
    assert (float(losses.sum), float(losses.last), losses.last_applied) == (3.0, 2.0, False)
    losses.begin_again()
    losses.add(torch.tensor(4.0), applied=True)
    assert (float(losses.sum), float(losses.last), losses.last_applied) == (4.0, 4.0, True)


def test_what_is_shown_is_of_logged_losses_alone():
    losses = Losses(CPU, None)
    losses.add(torch.tensor(1.0), applied=True)
    assert losses.shown is None
    losses.logged(3.0)
    assert losses.shown == pytest.approx(3.0)


def test_a_resumed_run_shows_the_mean_so_far_until_it_has_losses_of_its_own():
    losses = Losses(CPU, 5.0)
    assert losses.shown == pytest.approx(5.0)
    losses.logged(3.0)
    assert 3.0 < losses.shown < 5.0
