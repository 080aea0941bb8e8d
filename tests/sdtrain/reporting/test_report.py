"""Measuring speed without what is not training, and putting the report in place whole."""

import json

import pytest
import torch

from sdtrain.reporting import report
from sdtrain.reporting.report import Stopwatch
from tests.support.worker import Killed


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(report.time, "perf_counter", lambda: now[0])
    return now


def run(clock, skip, steps, seconds=1.0, pauses=()):
    watch = Stopwatch(torch.device("cpu"), skip)
    watch.go_on()
    for step in range(1, steps + 1):
        clock[0] += 100 if step <= skip else seconds
        watch.step()
        if step in pauses:
            watch.pause()
            clock[0] += 1000
            watch.go_on()
    return watch


@pytest.mark.parametrize("pauses", [(), (1,), (2, 3), (5,), (4, 6)])
@pytest.mark.parametrize("skip", [0, 1, 3])
def test_only_steps_after_the_skipped_ones_count(clock, skip, pauses):
    watch = run(clock, skip, 6, 0.5, pauses)
    assert watch.steps == 6 - skip
    assert watch.steps_per_second == pytest.approx(2.0)


def test_nothing_measured_is_none(clock):
    assert run(clock, 3, 3).steps_per_second is None


def test_a_report_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    report.write(path, {"steps": 1})

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(type(path), "replace", die)
        report.write(path, {"steps": 2})
    assert json.loads(path.read_text()) == {"steps": 1}


def test_versions_name_what_results_depend_on():
    assert report.versions()["torch"] == torch.__version__
