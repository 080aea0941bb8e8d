"""metrics.jsonl, and the losses of the steps: their sum, and a running mean for the log."""

import json
import os

import pytest
import torch

from sdjob import reading
from sdtrain.reporting import metrics
from sdtrain.reporting.metrics import (
    TAGS,
    VALIDATION,
    Losses,
    MetricsFile,
    RunningMean,
    StepMetrics,
    charts,
    read,
)

CPU = torch.device("cpu")


def write(path, first_step, *metrics):
    file = MetricsFile(path, first_step)
    for each in metrics:
        file.log(each)
    file.close()


def test_a_line_holds_what_was_measured_after_a_step(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    file = MetricsFile(path, 0)
    file.log(StepMetrics(5, loss=0.25, grad_norm=float("inf"), time=7.0))
    lines = path.read_text().splitlines()  # before it is closed, for those who follow a run
    assert json.loads(lines[1], parse_constant=pytest.fail) == {"step": 5, "loss": 0.25, "time": 7.0}
    file.close()


def test_a_pipe_in_the_place_of_the_file_is_not_waited_for(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    path.unlink()
    os.mkfifo(path)
    file.flush()
    file.close()


def test_training_and_validation_metrics_of_a_step_are_read_as_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, StepMetrics(5, loss=0.5), StepMetrics(5, validation_loss=0.75, time=9.0))
    assert read(path)[1:] == [StepMetrics(5, loss=0.5, validation_loss=0.75, time=9.0)]


def test_lines_that_no_run_writes_are_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, StepMetrics(5, loss=0.5, time=9.0))
    with path.open("a") as file:
        file.write(
            '{"step": "6"}\n{"step": 1e400}\n[]\n'
            + "[" * 100_000
            + '\n{"step": 7, "loss": "x", "time": 9.0}\n'
        )
    assert read(path)[1:] == [StepMetrics(5, loss=0.5, time=9.0), StepMetrics(7, time=9.0)]


def test_the_file_of_a_long_run_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.touch()
    os.truncate(path, reading.LARGEST + 1)
    write(path, 0, StepMetrics(5, loss=0.5, time=9.0))
    assert read(path)[-1] == StepMetrics(5, loss=0.5, time=9.0)


def test_of_a_file_without_end_the_last_steps_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_STEPS", 3)
    path = tmp_path / "metrics.jsonl"
    path.touch()
    os.truncate(path, 1 << 40)
    write(path, 0, *(StepMetrics(step, time=9.0) for step in range(1, 9)))
    assert [each.step for each in read(path)] == [6, 7, 8]


def test_a_resumed_run_supersedes_the_steps_after_its_checkpoint(tmp_path):
    """Steps 5 and 6 were logged before the run was killed and resumed from step 4; only 6 is logged again."""
    path = tmp_path / "metrics.jsonl"
    write(path, 0, *(StepMetrics(step, loss=1.0) for step in (3, 4, 5, 6)))
    write(path, 4, StepMetrics(6, loss=2.0))
    assert [(each.step, each.loss) for each in read(path)] == [(0, None), (3, 1.0), (4, 1.0), (6, 2.0)]


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_line_that_was_cut_off_is_skipped(tmp_path, cut):
    """And does not swallow the first line of the next start, which supersedes step 2."""
    path = tmp_path / "metrics.jsonl"
    write(path, 0, *(StepMetrics(step, loss=1.0) for step in (1, 2, 3)))
    path.write_bytes(path.read_bytes()[:-cut])
    assert [each.step for each in read(path)] == ([0, 1, 2, 3] if cut == 1 else [0, 1, 2])
    write(path, 1, StepMetrics(3, loss=2.0))
    assert [(each.step, each.loss) for each in read(path)] == [(0, None), (1, 1.0), (3, 2.0)]


def test_a_run_resumed_from_before_there_was_a_file_starts_at_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read(path) == []
    write(path, 4, StepMetrics(5, loss=2.0))
    assert [each.step for each in read(path)] == [4, 5]


def test_foreign_metrics_and_lines_are_ignored(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0, "time": 3.0, "temperature": 4.0}\n\n{}\n5\n')
    assert read(path) == [StepMetrics(1, loss=2.0, time=3.0)]


def test_the_mean_has_no_bias_towards_zero():
    mean = RunningMean()
    assert [mean.add(2.0) for _ in range(3)] == pytest.approx([2.0, 2.0, 2.0])


def test_the_mean_forgets():
    mean = RunningMean(decay=0.5)
    assert [mean.add(value) for value in (0.0, 3.0, 3.0)] == pytest.approx([0.0, 2.0, 18 / 7])


def test_losses_of_the_steps_since_a_checkpoint():
    losses = Losses(CPU, None)
    losses.add(torch.tensor(1.0), applied=True)
    losses.add(torch.tensor(2.0), applied=False)
    assert (float(losses.sum), float(losses.last), losses.last_applied) == (3.0, 2.0, False)
    losses.reset()
    losses.add(torch.tensor(4.0), applied=True)
    assert (float(losses.sum), float(losses.last), losses.last_applied) == (4.0, 4.0, True)


def test_the_shown_mean_is_of_logged_losses_alone():
    losses = Losses(CPU, None)
    losses.add(torch.tensor(1.0), applied=True)
    assert losses.shown is None
    losses.log(3.0)
    assert losses.shown == pytest.approx(3.0)


def test_a_resumed_run_shows_the_mean_so_far_until_it_logs_losses():
    losses = Losses(CPU, 5.0)
    assert losses.shown == pytest.approx(5.0)
    losses.log(3.0)
    assert 3.0 < losses.shown < 5.0


def test_what_follows_from_the_table():
    assert "validation_loss" in VALIDATION
    # report.html knows validation metrics by their names, TensorBoard by their tags.
    assert {TAGS[name].split("/")[0] for name in VALIDATION} == {"validation"}
    assert charts()["loss"] == ["train/loss", "validation/loss"]
    assert {tag for tags in charts().values() for tag in tags} < set(TAGS.values())
