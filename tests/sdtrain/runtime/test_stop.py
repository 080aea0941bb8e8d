"""Requests to stop: signals and the stop file."""

import os
import signal
import subprocess
import sys

import pytest

from sdtrain.runtime import stop
from tests.support import worker


def test_a_signal_is_a_request_and_the_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for number in (signal.SIGTERM, signal.SIGINT):
        with stop.watch({}) as request:
            assert not request
            os.kill(os.getpid(), number)
            assert request
            os.kill(os.getpid(), number)  # passed on by torchrun as well: still the same request
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_request_ends_the_process(number):
    script = (
        "import os, time; from sdjob import protocol; from sdtrain.runtime import stop; protocol.ONE_REQUEST = 0.1\n"
        f"with stop.watch({{}}): os.kill(os.getpid(), {int(number)}); time.sleep(0.2)\n"
        f"with stop.watch({{}}): [os.kill(os.getpid(), {int(number)}) or time.sleep(0.2) for _ in 'ab']"
    )
    done = subprocess.run([sys.executable, "-c", script], env=worker.environment())
    assert done.returncode == -number


def test_the_flag_file_is_a_request(tmp_path):
    flag = tmp_path / "stop"
    with stop.watch({"SDJOB_STOP_FILE": str(flag)}) as request:
        assert not request
        flag.touch()
        assert request


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), stop.watch({}):
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before
