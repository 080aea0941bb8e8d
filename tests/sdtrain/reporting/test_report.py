"""report.json: its numbers. Its keys are tested in tests/end_to_end/test_worker_outputs.py."""

import json

import pytest
import torch

from sdjob.settings.run_spec import RunSpec
from sdtrain.data.sampling import BatchShape
from sdtrain.reporting import report
from sdtrain.reporting.report import Outcome
from sdtrain.reporting.stopwatch import Spent
from tests.support.worker import alone


def reported(monkeypatch, **outcome):
    """Of a start that took 60 s on one process, after earlier ones."""
    monkeypatch.setattr(
        Spent, "and_this_start", lambda self, processes: Spent(self.seconds + 60, self.device_seconds + 60)
    )
    values = {"first_step": 2, "last_step": 5, "final_loss": 0.5, "mean_loss": 0.25, "skip_steps": 1}
    values |= {"num_examples": 6, "steps_per_second": None, "spent_before": Spent(), **outcome}
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o")
    return report.report(spec, alone(), BatchShape(2, 3, 1), Outcome(**values), "math")


def test_time_is_of_all_starts(monkeypatch):
    values = reported(monkeypatch, spent_before=Spent(100.0, 3540.0))
    assert (values["seconds"], values["seconds_of_this_start"], values["device_hours"]) == (160, 60, 1)


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
