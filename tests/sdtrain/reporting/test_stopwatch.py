"""The speed of the training steps alone, and the time of all starts of a run."""

import time

import pytest
import torch

from sdjob.output import starts
from sdjob.output.layout import OutputLayout
from sdtrain.reporting import stopwatch
from sdtrain.reporting.stopwatch import Spent, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return now


def run(clock, skip, steps, seconds=1.0, pauses=()):
    watch = Stopwatch(torch.device("cpu"), skip)
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
    assert watch.steps_per_second == pytest.approx(2.0)


def test_nothing_measured_is_none(clock):
    assert run(clock, 3, 3).steps_per_second is None


def test_a_measurement_goes_on_until_it_is_read(clock):
    watch = run(clock, 1, 3)
    clock[0] += 2.0
    assert watch.steps_per_second == pytest.approx(2 / 4)


def test_time_counts_from_the_creation_of_the_process_once_for_each_process(monkeypatch):
    age = time.time() - stopwatch.psutil.Process().create_time()
    monkeypatch.setattr(stopwatch.time, "time", lambda: 0.0)  # set back to 1970
    spent = Spent(100.0, 200.0).and_this_start(4, 7.0)
    assert (spent.seconds, spent.device_seconds) == pytest.approx((100 + age, 200 + 4 * age), abs=10)
    assert spent.at == 7.0


def test_what_a_killed_start_did_after_its_checkpoint_is_added(tmp_path):
    layout = OutputLayout(tmp_path)
    layout.run.mkdir()
    starts.begin(layout, 1000.0, 4, last_sign=0.0)
    starts.begin(layout, 2000.0, 4, last_sign=1060.0)
    assert Spent(40.0, 160.0, at=1050.0).and_unsaved(layout) == Spent(50.0, 200.0, at=1050.0)
    assert Spent().and_unsaved(layout) == Spent(60.0, 240.0)
