"""What is told of losses that are out of the ordinary."""

import random

import pytest

from sdjob.settings.run_spec import RunSpec
from sdtrain.reporting.anomalies import Incidents, Spikes
from tests.support.worker import alone


def noisy(seed: int, count: int) -> list[float]:
    """Losses as of single timesteps: spread over two powers of ten."""
    numbers = random.Random(seed)
    return [10 ** numbers.uniform(-2.5, -0.5) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_losses_are_no_spikes(seed):
    spikes = Spikes()
    assert [loss for loss in noisy(seed, 2000) if spikes.usual(loss) is not None] == []


def test_a_loss_that_falls_quickly_is_no_spike():
    spikes = Spikes()
    assert [n for n in range(300) if spikes.usual(0.97**n) is not None] == []


def test_a_spike_is_told_with_what_is_usual(capsys):
    incidents = Incidents(RunSpec(pretrained_model_name_or_path="m", output_dir="o"), alone(), 0, ())
    numbers = random.Random(0)
    for step in range(1, 100):
        incidents.logged(numbers.uniform(0.09, 0.11), step)
    assert capsys.readouterr().out == ""
    incidents.logged(25.0, 100)
    assert capsys.readouterr().out == (
        "warning: the loss of step 100 is 25.0000, those before were about 0.1025\n"
    )


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [
        ("fp16", "Lower lr, use mixed_precision=bf16 or no, or check the data"),
        ("bf16", "Lower lr, use mixed_precision=no, or check the data"),
        ("no", "Lower lr, or check the data"),
    ],
)
def test_the_remedy_for_divergence_is_not_what_is_so_already(precision, remedy):
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o", mixed_precision=precision)
    (problem,) = Incidents(spec, alone(), 0, ()).diverged("loss", "is nan").problems
    assert problem.remedy.split(";")[0] == remedy
