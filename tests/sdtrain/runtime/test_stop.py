"""Requests to stop: signals and the stop file."""

import os
import signal
import subprocess
import sys

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


def test_the_loss_of_the_parents_is_a_request_at_once(monkeypatch):
    lost = []
    monkeypatch.setattr(Parents, "gone", lambda self: bool(lost))
    with stop.watch({}, Parents(os.getppid(), None, grace=60)) as request:
        assert not request
        lost.append(True)
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


class Ranks:
    """The world of one of two ranks; `other` is what the other one asks for, and nothing waits."""

    size = 2

    def __init__(self):
        self.other, self.read = (False, False), 0

    def ask(self, *flags):
        answer = tuple(mine or theirs for mine, theirs in zip(flags, self.other, strict=True))

        def read():
            self.read += 1
            return answer

        return read


def test_the_answer_is_read_a_step_later_and_after_the_last_step_at_once():
    ranks = Ranks()
    vote = stop.StopVote(ranks)
    assert not vote.stops(False, is_last=False)
    assert ranks.read == 1  # how long a step takes was not known
    assert not vote.stops(False, is_last=False)
    assert ranks.read == 1
    ranks.other = (True, False)
    assert not vote.stops(False, is_last=False)
    assert vote.stops(False, is_last=False)
    vote = stop.StopVote(ranks)
    ranks.other = (False, False)
    vote.stops(False, is_last=False)
    assert not vote.stops(False, is_last=False)
    assert vote.stops(True, is_last=True)


def test_where_steps_are_long_for_any_rank_it_is_read_at_once(monkeypatch):
    ranks, now = Ranks(), 0.0
    monkeypatch.setattr(stop.time, "monotonic", lambda: now)
    vote = stop.StopVote(ranks)
    vote.stops(False, is_last=False)
    ranks.other = (False, True)  # its step was long
    vote.stops(False, is_last=False)
    vote.stops(False, is_last=False)
    ranks.other = (True, True)
    assert vote.stops(False, is_last=False)


def test_one_process_stops_after_the_step_in_which_it_was_asked():
    vote = stop.StopVote(worker.alone())
    assert [vote.stops(wanted, is_last=False) for wanted in (False, False, True)] == [False, False, True]
