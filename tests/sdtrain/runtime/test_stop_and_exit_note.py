"""Requests to stop, and what a process leaves for the launcher."""

import json
import os
import signal
import subprocess
import sys

import pytest

from sdjob.problems import bad_setting
from sdtrain.runtime import exit_note, stop
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


def test_no_note_without_a_launcher():
    assert exit_note.leave(75, environ={}) is False


def test_a_note_says_who_why_and_when(tmp_path):
    folder = tmp_path / "new" / "notes"
    problem = bad_setting("lr", "is 2", "Lower it.")
    environ = {"SDJOB_NOTES_DIR": str(folder), "RANK": "3"}
    assert exit_note.leave(64, step=7, problems=[problem], error="E", traceback="T", environ=environ)
    assert [path.name for path in folder.iterdir()] == ["rank-3.json"]  # nothing temporary
    note = json.loads((folder / "rank-3.json").read_text())
    assert note.pop("time") > 1e9
    assert note == {
        "rank": 3,
        "code": 64,
        "step": 7,
        "problems": [{"subject": "lr", "found": "is 2", "remedy": "Lower it.", "code": 64}],
        "error": "E",
        "traceback": "T",
    }


def test_a_note_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    assert exit_note.leave(70, environ={"SDJOB_NOTES_DIR": str(tmp_path / "file" / "notes")}) is False
