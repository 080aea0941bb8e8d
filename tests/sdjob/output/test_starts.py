"""Tests of starts: what a run has spent that no checkpoint could tell."""

from dataclasses import replace

import pytest

from sdjob.output import starts
from sdjob.output.layout import OutputLayout
from sdjob.output.starts import Start, unsaved


@pytest.fixture
def layout(tmp_path):
    (tmp_path / "run").mkdir()
    return OutputLayout(tmp_path)


def test_a_start_that_was_killed_lasted_until_its_last_sign_of_life(layout):
    starts.begin(layout, 100.0, 4, last_sign=0.0)
    starts.begin(layout, 500.0, 2, last_sign=160.0)
    starts.end(layout, 550.0, finished=False)
    starts.begin(layout, 600.0, 1, last_sign=0.0)
    found = [replace(each, clock=None) for each in starts.read(layout)]
    assert found == [Start(100.0, 4, 160.0), Start(500.0, 2, 550.0), Start(600.0, 1)]


def test_without_a_sign_of_life_a_killed_start_took_no_time(layout):
    starts.begin(layout, 100.0, 4, last_sign=0.0)
    starts.begin(layout, 500.0, 4, last_sign=0.0)
    assert starts.read(layout)[0].until == 100.0


def test_a_clock_that_was_set_back_gives_no_negative_time(layout):
    starts.begin(layout, 100.0, 4, last_sign=0.0)
    starts.end(layout, 50.0, finished=False)
    assert unsaved(starts.read(layout), None, 40.0) == (0.0, 0.0)


def test_time_counts_whatever_the_clock_says(layout, monkeypatch):
    """Two starts of 100 s; the clock is set back by an hour in the first one, and by another before the second."""
    wall, passed = [10_000.0], [50.0]
    monkeypatch.setattr(starts.time, "time", lambda: wall[0])
    monkeypatch.setattr(starts.time, "monotonic", lambda: passed[0])
    starts.begin(layout, starts.now(layout), 2, last_sign=0.0)
    wall[0], passed[0] = wall[0] + 60 - 3600, passed[0] + 60
    saved_at = starts.now(layout)
    passed[0] += 40
    starts.end(layout, starts.now(layout), finished=False)
    wall[0] -= 3600
    starts.begin(layout, starts.now(layout), 2, last_sign=0.0)
    passed[0] += 5
    assert unsaved(starts.read(layout), saved_at, starts.now(layout) - 3) == (40.0, 80.0)
    assert unsaved(starts.read(layout), None, starts.now(layout) - 3) == (100.0, 200.0)
    passed[0] += 95
    starts.end(layout, starts.now(layout), finished=True)
    first, second = starts.read(layout)
    assert (first.until - first.since, second.until - second.since) == (100.0, 100.0)
    assert starts.now(layout) == wall[0]  # no start runs


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"x": 1}]', "null"])
def test_a_damaged_record_is_none(layout, content):
    layout.starts.write_text(content)
    assert starts.read(layout) == []
    starts.end(layout, 5.0, finished=True)


KILLED, STOPPED, THIS = Start(100.0, 4, 160.0), Start(500.0, 2, 550.0), Start(600.0, 2)


@pytest.mark.parametrize(
    ("saved_at", "seconds"),
    [
        (130.0, (80.0, 30 * 4 + 50 * 2.0)),  # the rest of the killed start, and the next one
        (540.0, (10.0, 20.0)),
        (550.0, (0.0, 0.0)),
        (603.0, (7.0, 14.0)),  # by an attempt of this start, before a crash
        (None, (110.0, 60 * 4 + 50 * 2.0)),  # nothing was ever saved
    ],
)
def test_only_what_came_after_the_checkpoint_is_added(saved_at, seconds):
    assert unsaved([KILLED, STOPPED, THIS], saved_at, 610.0) == seconds


def test_a_run_without_a_checkpoint_does_not_pay_for_one_that_finished():
    finished = Start(10.0, 8, 90.0, finished=True)
    assert unsaved([finished, KILLED, THIS], None, 610.0) == (60.0, 240.0)


@pytest.mark.parametrize(
    "content",
    [
        '[{"since": "x", "processes": 1}]',
        '[{"since": 1, "processes": null, "until": 2}]',
        '[{"since": NaN, "processes": 1, "clock": NaN}]',
        '[{"since": 1e308, "processes": 1, "until": 1.7e308}]',
        '[{"since": 1, "processes": 1%s, "until": 2}]' % ("0" * 400),
        '[{"since": -1e300, "processes": 1, "until": -1e299, "clock": -1}]',
    ],
)
def test_a_record_of_others_is_none_where_its_values_are_none_of_a_start(layout, content):
    layout.starts.write_text(content)
    starts.begin(layout, 100.0, 1, last_sign=0.0)
    assert [each.since for each in starts.read(layout)] == [100.0]
    layout.starts.write_text(content)
    starts.end(layout, starts.now(layout), finished=True)
