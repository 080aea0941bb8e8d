"""Threads change neither the order of the results nor what is raised."""

import time

import pytest

from sdjob.threads import in_threads


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100])
def test_the_order_is_that_of_the_items(count):
    assert in_threads(lambda number: number**2, range(count)) == [number**2 for number in range(count)]


def test_waiting_is_done_at_once():
    begin = time.monotonic()
    in_threads(lambda _: time.sleep(0.05), range(32))
    assert time.monotonic() - begin < 1.0  # one after the other: 1.6 s


def test_errors_are_raised():
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda number: 1 / number, [2, 1, 0])
