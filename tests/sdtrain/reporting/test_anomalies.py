"""Non-finite losses, loss spikes and images that cannot be used: when they are reported, and in which words."""

import math
import random
from types import SimpleNamespace

import pytest
import torch

from sdjob.problems import JobError, bad_input
from sdjob.settings.run_spec import RunSpec
from sdtrain.reporting.anomalies import Anomalies, Spikes
from tests.support.worker import alone


def anomalies(skipped_steps=0, bad_samples=(), **settings):
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o", **settings)
    return Anomalies(spec, alone(), skipped_steps, bad_samples)


def batch(*names, bad=()):
    problems = [bad_input(name, "is empty", "replace it") for name in bad]
    return SimpleNamespace(names=names, skipped=problems)


def problem(error):
    (only,) = error.value.problems
    return only


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_losses_are_not_spikes(seed):
    """As of single timesteps, over two powers of ten."""
    numbers, spikes = random.Random(seed), Spikes()
    losses = [10 ** numbers.uniform(-2.5, -0.5) for _ in range(2000)]
    assert [loss for loss in losses if spikes.usual(loss) is not None] == []


def test_a_loss_that_falls_quickly_is_not_a_spike():
    spikes = Spikes()
    assert [n for n in range(300) if spikes.usual(0.97**n) is not None] == []


def after(losses, loss):
    """The usual loss if a loss is a spike after others."""
    spikes = Spikes()
    for each in losses:
        assert spikes.usual(each) is None
    return spikes.usual(loss)


def test_a_spike_is_six_standard_deviations_above_the_mean():
    """Logarithms of ±0.1 in turn: mean -0.0026, standard deviation 0.1."""
    losses = [math.exp(0.1 * (-1) ** n) for n in range(200)]
    assert after(losses, math.exp(0.59)) is None
    assert after(losses, math.exp(0.60)) == pytest.approx(math.exp(-0.0026), rel=1e-3)


def test_equal_losses_leave_room_for_small_deviations():
    assert after([2.0] * 30, 2.0 * math.exp(0.059)) is None
    assert after([2.0] * 30, 2.0 * math.exp(0.061)) == pytest.approx(2.0)


def test_there_is_no_verdict_before_twenty_losses():
    assert after([1.0] * 19, 100.0) is None
    assert after([1.0] * 20, 100.0) == pytest.approx(1.0)


def test_the_mean_is_over_recent_losses():
    """A weight of 0.05 for each loss: after 100 lower ones, 0.6 % of the mean are from before."""
    usual = after([math.exp(1.0)] * 100 + [1.0] * 100, math.exp(2.0))
    assert math.log(usual) == pytest.approx(0.95**100 / (1 + 0.95**100), rel=1e-3)


def test_the_warning_says_what_is_usual(capsys):
    found = anomalies()
    numbers = random.Random(0)
    for step in range(1, 100):
        found.warn_of_spike(numbers.uniform(0.09, 0.11), step)
    assert capsys.readouterr().out == ""
    found.warn_of_spike(25.0, 100)
    assert capsys.readouterr().out == ("warning: loss spike at step 100: 25.0000, recently about 0.1025\n")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_ends_the_run_and_names_its_first_batch(value):
    found = anomalies()
    found.observe(3, batch("a"), torch.tensor(1.0))
    found.observe(4, batch("b", "c"), torch.tensor(value))
    found.observe(5, batch("d"), torch.tensor(math.nan))
    with pytest.raises(JobError) as error:
        found.finite(torch.tensor(value), 5)
    assert problem(error).found == f"is {value} by step 5; it was {value} at step 4, with b, c"
    assert (problem(error).code, problem(error).subject) == (70, "loss")


def test_the_first_batch_is_that_of_the_earliest_step_on_any_rank():
    """This rank at step 4; two others at step 3, one of them with an infinite loss."""
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o")
    others = [(3, math.inf, ("b",)), None, (3, math.nan, ("c",))]
    found = Anomalies(spec, SimpleNamespace(gather=lambda mine: [mine, *others]), 0, ())
    found.observe(4, batch("a"), torch.tensor(math.nan))
    with pytest.raises(JobError) as error:
        found.finite(torch.tensor(math.nan), 5)
    assert problem(error).found.endswith("it was inf at step 3, with b, c")


def test_a_message_names_at_most_eight_images():
    found = anomalies()
    found.observe(1, batch(*"abcdefghij"), torch.tensor(math.nan))
    with pytest.raises(JobError) as error:
        found.finite(torch.tensor(math.nan), 1)
    assert problem(error).found.endswith("with a, b, c, d, e, f, g, h and 2 more")


def test_the_last_thousand_batches_are_remembered():
    found = anomalies()
    for step in range(1, 1002):
        found.observe(step, batch("a"), torch.tensor(math.nan))
    with pytest.raises(JobError) as error:
        found.finite(torch.tensor(math.nan), 1001)
    assert problem(error).found.endswith("it was nan at step 2, with a")


def test_a_sum_may_overflow_although_every_loss_is_finite():
    found = anomalies()
    found.observe(1, batch("a"), torch.tensor(3e38))
    with pytest.raises(JobError) as error:
        found.finite(torch.tensor(math.inf), 1)
    assert problem(error).found == "is inf by step 1; it was finite in every batch"


def test_a_finite_loss_clears_what_was_observed():
    found = anomalies()
    found.observe(1, batch("a"), torch.tensor(math.nan))
    assert found.finite(torch.tensor(0.5), 1) == 0.5
    found.observe(2, batch("b"), torch.tensor(math.nan))
    with pytest.raises(JobError) as error:
        found.finite(torch.tensor(math.nan), 2)
    assert "at step 2, with b" in problem(error).found


def test_skipped_steps_are_counted_up_to_max_nan_steps(capsys):
    found = anomalies(skipped_steps=1, max_nan_steps=2)
    found.observe(5, batch("a"), torch.tensor(math.nan))
    found.skip_step(5)
    assert capsys.readouterr().out == ("step 5 is not applied: the loss was nan at step 5, with a (2 of 2)\n")
    found.observe(6, batch("b"), torch.tensor(math.inf))
    with pytest.raises(JobError) as error:
        found.skip_step(6)
    assert (found.skipped_steps, problem(error).subject) == (3, "loss")
    assert problem(error).found == (
        "3 steps had a non-finite loss (max_nan_steps=2); the last was inf at step 6, with b"
    )


def test_bad_images_are_reported_once_and_up_to_max_bad_samples(capsys):
    found = anomalies(bad_samples=["a"], max_bad_samples=2)
    for step in (1, 2):
        found.observe(step, batch("x", bad=["a", "b"]), torch.tensor(1.0))
        found.agree_on_bad_samples()
    assert found.bad_samples == ("a", "b")
    assert capsys.readouterr().out == "skipped: b: is empty\n"
    found.observe(3, batch("x", bad=["c"]), torch.tensor(1.0))
    with pytest.raises(JobError) as error:
        found.agree_on_bad_samples()
    named, summary = error.value.problems
    assert (named.subject, summary.code) == ("c", 66)
    assert summary.found == "3 images cannot be used (max_bad_samples=2): a, b, c"


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [
        ("fp16", "Lower lr, use mixed_precision=bf16 or no, or check the data"),
        ("bf16", "Lower lr, use mixed_precision=no, or check the data"),
        ("no", "Lower lr, or check the data"),
    ],
)
def test_the_remedy_suggests_a_more_stable_precision_only(precision, remedy):
    (only,) = anomalies(mixed_precision=precision).diverged("loss", "is nan").problems
    assert only.remedy.split(";")[0] == remedy
