"""Progress in a log: the first line at once, then one every few seconds, and the last."""

import pytest

from sdtrain import progress
from sdtrain.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Time that only the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines(clock, capsys):
    with Progress("step", 100) as shown:
        for done in range(1, 101):
            clock[0] += 0.5
            shown.show(done, f"loss {done}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step    1/100  loss 1  2.0 it/s  eta 0:00:50"
    assert lines[1] == "step   11/100  loss 11  2.0 it/s  eta 0:00:44"
    assert lines[-1] == "step  100/100  loss 100  2.0 it/s  eta 0:00:00"
    assert len(lines) == 11


def test_the_rate_of_a_resumed_run_is_of_its_own_steps(clock, capsys):
    with Progress("step", 100, done=90) as shown:
        clock[0] += 5
        shown.show(95)
    assert capsys.readouterr().out == "step   95/100  1.0 it/s  eta 0:00:05\n"


def test_other_ranks_are_silent(clock, capsys):
    with Progress("step", 2, shown=False) as shown:
        shown.show(1)
        shown.show(2)
    said = capsys.readouterr()
    assert said.out == said.err == ""
