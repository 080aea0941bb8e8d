"""report.json: its numbers. Its keys are tested in tests/end_to_end/test_worker_outputs.py."""

import json
import math
from types import MappingProxyType, SimpleNamespace

import pytest
import torch

from sdjob.model.architectures import STABLE_DIFFUSION
from sdjob.settings.run_spec import RunSpec
from sdtrain.checkpoint.checkpoint import TrainState
from sdtrain.data.sampling import BatchShape
from sdtrain.model import attention
from sdtrain.reporting import report
from sdtrain.reporting.report import Outcome
from sdtrain.reporting.stopwatch import Spent
from tests.support.worker import alone

NONE_SPENT = Spent()


def reported(monkeypatch, loss=0.5, spent=NONE_SPENT, steps_per_second=None, validated=MappingProxyType({})):
    """Of a start that took 60 s on one process, after earlier ones."""
    monkeypatch.setattr(
        Spent, "and_this_start", lambda self, processes: Spent(self.seconds + 60, self.device_seconds + 60)
    )
    state = TrainState(5, samples_seen=30, loss=loss, loss_sum=1.25, fingerprint={}, spent=spent)
    outcome = Outcome(state, first_step=2, steps_per_second=steps_per_second, skip_steps=1)
    monkeypatch.setattr(attention, "running", lambda *details: "math")
    facts = STABLE_DIFFUSION
    parts = SimpleNamespace(architecture=SimpleNamespace(facts=facts), denoiser=None, dtype=None)
    training = SimpleNamespace(
        spec=RunSpec(pretrained_model_name_or_path="m", output_dir="o"),
        world=alone(),
        parts=parts,
        shape=BatchShape(2, 3, 1),
        num_examples=6,
        held_out=None,
    )
    return report.report(training, SimpleNamespace(architecture=facts), outcome, validated)


def test_time_is_of_all_starts(monkeypatch):
    values = reported(monkeypatch, spent=Spent(100.0, 3540.0))
    assert (values["seconds"], values["seconds_of_this_start"], values["device_hours"]) == (160, 60, 1)


def test_losses_are_those_of_the_state(monkeypatch):
    values = reported(monkeypatch)
    assert (values["steps"], values["final_loss"], values["mean_loss"]) == (5, 0.5, 0.25)
    assert reported(monkeypatch, loss=math.nan)["final_loss"] is None


def test_each_validation_metric_is_a_key(monkeypatch):
    assert reported(monkeypatch)["validation_loss"] is None
    assert reported(monkeypatch, validated={"validation_loss": 0.25})["validation_loss"] == 0.25


def test_speed_is_in_steps_and_images(monkeypatch):
    values = reported(monkeypatch, steps_per_second=0.5)
    assert (values["steps_per_second"], values["images_per_second"]) == (0.5, 3.0)
    assert reported(monkeypatch)["images_per_second"] is None  # not measured


def test_a_report_is_strict_json(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    values = reported(monkeypatch)
    report.write(path, values)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == values


def test_versions_include_the_packages_that_results_depend_on():
    assert report.versions()["torch"] == torch.__version__
