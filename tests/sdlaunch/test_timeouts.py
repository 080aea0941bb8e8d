"""Tests of bounded tasks and short-lived processes."""

import os
import tempfile
import time

import pytest

from sdjob.problems import JobError, bad_input
from sdlaunch.timeouts import NoAnswer, Task, ask, outcome


def test_a_task_gives_its_result_or_its_error_or_nothing_in_time():
    until = time.monotonic() + 5
    assert Task(lambda: 7).result(until) == 7
    with pytest.raises(ZeroDivisionError):
        Task(lambda: 1 / 0).result(until)
    with pytest.raises(NoAnswer):
        Task(lambda: time.sleep(5)).result(time.monotonic() + 0.05)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import time; time.sleep(60)", "no answer within 0.2 s"),
        ("import sys; sys.exit('a\\nb')", "b"),
        ("raise SystemExit(3)", "exit status 3"),
        ("print('no JSON')", "Expecting value"),
    ],
)
def test_a_process_without_an_answer_gives_the_reason(code, reason):
    with pytest.raises(NoAnswer, match=reason):
        ask(["-c", code], os.environ, 0.2 if "sleep" in code else 60)


def test_a_process_gets_only_so_much_memory():
    with pytest.raises(NoAnswer, match="MemoryError"):
        ask(["-c", "print(len(bytes(1 << 30)))"], os.environ, 60, memory=512 << 20)
    assert ask(["-c", "print(len(bytes(1 << 30)))"], os.environ, 60) == 1 << 30


def test_no_temporary_folder_is_needed_for_an_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    code = "import os; print(repr(os.environ.get('TMPDIR', '')).replace(chr(39), chr(34)))"
    without = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    assert ask(["-c", code], without, 60) == ""
    assert ask(["-c", code], {**without, "TMPDIR": str(tmp_path)}, 60).startswith(f"{tmp_path}/sdjob-")


def test_the_answer_of_a_process_is_its_last_line():
    assert ask(["-c", 'print("noise"); print("[1, null]")'], os.environ, 60) == [1, None]


@pytest.mark.parametrize(
    ("error", "subject", "found"),
    [
        (OSError(5, "Input/output error", "/mnt/a"), "/mnt/a", "Input/output error"),
        (JobError(bad_input("x", "y", "z")), "x", "y"),
    ],
)
def test_a_file_system_that_fails_is_a_problem(error, subject, found):
    def fail():
        raise error

    value, (problem,) = outcome(Task(fail), time.monotonic() + 5, "MODEL_DIR", "/mnt", 5)
    assert (value, problem.subject, problem.found, problem.code) == (None, subject, found, 66)


def test_a_mount_that_does_not_answer_is_a_problem_with_the_code_of_its_check():
    late = Task(lambda: time.sleep(5))
    _, (problem,) = outcome(late, time.monotonic() + 0.05, "OUTPUT_DIR", "/output", 0.05, 73)
    assert (problem.subject, problem.code) == ("OUTPUT_DIR", 73)
    assert problem.found == "/output did not answer within 0.05 s" and "check_timeout" in problem.remedy
