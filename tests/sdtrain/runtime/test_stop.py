"""Requests to stop: signals and the stop file."""

import os
import signal
import subprocess
import sys
import time

import pytest

from sdjob import protocol
from sdtrain.runtime import stop
from sdtrain.runtime.parents import Parents
from tests.support import worker


def test_a_signal_is_a_request_and_the_handlers_come_back(monkeypatch):
    before = [signal.getsignal(number) for number in protocol.STOP_SIGNALS]
    for number in protocol.STOP_SIGNALS:
        monkeypatch.setattr(protocol, "ONE_REQUEST", 3.0 if number == signal.SIGINT else 0.0)
        with stop.watch({}) as request:
            assert not request
            os.kill(os.getpid(), number)
            assert request
            os.kill(os.getpid(), number)  # passed on by torchrun as well: still the same request
    assert [signal.getsignal(number) for number in protocol.STOP_SIGNALS] == before


def test_a_repeated_sigint_ends_the_process():
    number = signal.SIGINT
    script = (
        "import os, time; from sdjob import protocol; from sdtrain.runtime import stop; protocol.ONE_REQUEST = 0.1\n"
        f"with stop.watch({{}}): os.kill(os.getpid(), {int(number)}); time.sleep(0.2)\n"
        f"with stop.watch({{}}): [os.kill(os.getpid(), {int(number)}) or time.sleep(0.2) for _ in 'ab']"
    )
    done = subprocess.run([sys.executable, "-c", script], env=worker.environment())
    assert done.returncode == -number


def test_while_a_rank_joins_a_signal_ends_it_though_no_handler_would_run():
    script = """
import signal
from sdtrain.runtime import stop
with stop.watch({}) as request, request.at_once():
    print("ready", flush=True)
    signal.pause()
"""
    with worker.started("-c", script) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM


def test_a_rank_that_was_asked_to_stop_before_does_not_join():
    """The others may have ended: it would wait until torchrun kills it."""
    before = signal.getsignal(signal.SIGTERM)
    with stop.watch({}) as request:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(stop.Stopped), request.at_once():
            pytest.fail("it joined")
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_flag_file_is_a_request(tmp_path):
    flag = tmp_path / "stop"
    with stop.watch({"SDJOB_STOP_FILE": str(flag)}) as request:
        assert not request
        flag.touch()
        assert request


def test_the_loss_of_the_parents_is_a_request(monkeypatch):
    monkeypatch.setattr(stop, "_LOOK", 0.01)
    lost = []
    monkeypatch.setattr(Parents, "gone", lambda self: bool(lost))
    with stop.watch({}, Parents(os.getppid(), None, grace=60)) as request:
        time.sleep(0.05)
        assert not request
        lost.append(True)
        until = time.monotonic() + 10
        while not request and time.monotonic() < until:
            time.sleep(0.01)
        assert request


def test_a_rank_that_waits_forever_for_another_ends_without_its_parents():
    script = (
        "import time; from sdtrain.runtime import stop; from sdtrain.runtime.parents import Parents\n"
        "stop._LOOK = 0.01\n"
        "with stop.watch({}, Parents(torchrun=-1, launcher=None, grace=0.1)): time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=worker.environment(), timeout=30)
    assert done.returncode == 75


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), stop.watch({}):
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before
