"""Progress in a log: the first line at once, then one every few seconds, and the last; and in heartbeats."""

import os
from itertools import pairwise

import pytest

from sdjob import protocol
from sdjob.protocol import Channel, Heartbeat
from sdtrain.reporting import progress
from sdtrain.reporting.progress import Progress

LINES_OF_EIGHT_HOURS = 1002  # one every 5 seconds would be 5,760


@pytest.fixture
def clock(monkeypatch):
    """Time that only the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def printed(capsys) -> str:
    """What a log shows; each line is marked as progress, which a terminal shows in place."""
    lines = capsys.readouterr().out.splitlines(keepends=True)
    assert [line for line in lines if line != f"{protocol.progress_line(line.rstrip())}\n"] == []
    return "".join(f"{line.rstrip()}\n" for line in lines)


def test_lines(clock, capsys):
    shown = Progress("train", 100, steps=True)
    for done in range(1, 101):
        clock[0] += 0.5
        shown.show(done, f"loss {done}")
    lines = printed(capsys).splitlines()
    assert lines[0] == "train    1/100  loss 1  2.0 it/s  eta 0:00:50"
    assert lines[1] == "train   11/100  loss 11  2.0 it/s  eta 0:00:44"
    assert lines[-1] == "train  100/100  loss 100  2.0 it/s  eta 0:00:00"
    assert len(lines) == 11


def test_a_resumed_run_measures_its_own_steps(clock, capsys):
    shown = Progress("train", 100, done=90, steps=True)
    clock[0] += 5
    shown.show(95)
    assert printed(capsys) == "train   95/100  1.0 it/s  eta 0:00:05\n"


def test_slow_steps_are_shown_in_seconds_each(clock, capsys):
    shown = Progress("train", 4, steps=True)
    for done in (1, 2):
        clock[0] += 40
        shown.show(done)
    assert printed(capsys).splitlines()[1] == "train    2/4  40.0 s/it  eta 0:01:20"


def test_the_rate_forgets_the_first_step_and_slow_steps_long_ago(clock, capsys):
    shown = Progress("train", 1000, steps=True)
    for done in range(1, 601):
        clock[0] += 90 if done == 1 else 1 if done <= 200 else 0.5
        shown.show(done)
    lines = printed(capsys).splitlines()
    assert lines[0] == "train    1/1000  90.0 s/it  eta 1 day, 0:58:30"
    assert lines[1] == "train    6/1000  1.0 it/s  eta 0:16:34"
    assert lines[-1] == "train  569/1000  2.0 it/s  eta 0:03:37"


def test_the_rate_is_a_running_mean_over_lines(clock, capsys):
    """After 5 steps in 5 s, 10 in 5 s: (0.3 * 10 + 0.7 * 0.3 * 5) / (0.3 + 0.7 * 0.3) / 5 = 1.59."""
    shown = Progress("train", 100, steps=True)
    for done in (1, 6, 16):
        clock[0] += 5
        shown.show(done)
    assert "1.6 it/s" in printed(capsys).splitlines()[-1]


@pytest.mark.parametrize(
    ("lines", "rate"),
    [
        ([(2, 1.0), (12, 0.01)], "11.9 it/s"),  # the images of a batch come at once
        ([(1, 9.0), (11, 5.0), (20, 0.5)], "2.0 it/s"),  # the last steps after a line
    ],
)
def test_the_last_line_measures_no_moment(clock, capsys, lines, rate):
    shown = Progress("validate", lines[-1][0])
    for done, seconds in lines:
        clock[0] += seconds
        shown.show(done)
    assert rate in printed(capsys).splitlines()[-1]


def test_pauses_lengthen_the_time_left_and_not_the_rate(clock, capsys):
    shown = Progress("train", 20, steps=True)
    for done in range(1, 11):
        clock[0] += 1
        shown.show(done)
        if done == 5:
            with shown.paused():
                clock[0] += 30
    assert printed(capsys).splitlines()[-1] == "train    6/20  1.0 it/s  eta 0:01:24"


def test_lines_become_fewer_with_the_hours(clock, capsys):
    shown = Progress("train", 8 * 3600, steps=True)
    for done in range(1, 8 * 3600 + 1):
        clock[0] += 1
        shown.show(done)
    steps = [int(line.split()[1].partition("/")[0]) for line in printed(capsys).splitlines()]
    spaces = [after - before for before, after in pairwise(steps[:-1])]
    assert (spaces[0], spaces[-1], len(steps)) == (5, 30, LINES_OF_EIGHT_HOURS)
    assert spaces == sorted(spaces)


def test_work_that_has_not_advanced_has_no_rate(clock, capsys):
    shown = Progress("images", 4)
    clock[0] += 1
    shown.show(0)
    assert printed(capsys) == "images\nimages    0/4  ? it/s  eta ?\n"


def test_other_ranks_are_silent(clock, capsys):
    shown = Progress("train", 2, shown=False, steps=True)
    shown.show(1)
    shown.show(2)
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_heartbeats_tell_the_stage_and_keep_the_last_step(tmp_path, monkeypatch, clock):
    for name, value in Channel(tmp_path, tmp_path / "stop").environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "1")
    shown = Progress("train", 100, done=40, shown=False, steps=True)
    assert Heartbeat.read(tmp_path, 1) == Heartbeat(os.getpid(), "train", None, 40, 100)
    shown.show(41)
    assert Heartbeat.read(tmp_path, 1) == Heartbeat(os.getpid(), "train", 41, 41, 100)
    shown = Progress("class images", 9)
    clock[0] += 6
    shown.show(3, "half size")
    measured = Heartbeat(os.getpid(), "class images", 41, 3, 9, 12.0, "half size  2.0 s/it")
    assert Heartbeat.read(tmp_path, 1) == measured
