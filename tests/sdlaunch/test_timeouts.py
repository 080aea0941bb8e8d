"""Tests of bounded tasks."""

import time

import pytest

from sdlaunch.timeouts import NoAnswer, Task


def test_a_task_gives_its_result_or_its_error_or_nothing_in_time():
    until = time.monotonic() + 5
    assert Task(lambda: 7).result(until) == 7
    with pytest.raises(ZeroDivisionError):
        Task(lambda: 1 / 0).result(until)
    with pytest.raises(NoAnswer):
        Task(lambda: time.sleep(5)).result(time.monotonic() + 0.05)
