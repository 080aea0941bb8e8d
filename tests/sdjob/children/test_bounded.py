"""Functions run in another process, within memory and time, and end with their caller."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sdjob.children import bounded
from sdjob.children.bounded import in_child, working_on
from sdjob.problems import JobError
from tests.support.worker import PROJECT

PARENT = (
    "import sys, threading; from sdjob.children.bounded import in_child; "
    "from tests.sdjob.children import test_bounded; "
    "thread = threading.Thread(target=in_child, args=(test_bounded.stay, sys.argv[1]), kwargs={'subject': 'a'}); "
    "thread.start(); thread.join()"
)


def stay(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_no_child(tmp_path, number):
    path = tmp_path / "pid"
    command = [sys.executable, "-c", PARENT, str(path)]
    with subprocess.Popen(command, env={"PYTHONPATH": f"{PROJECT}:{PROJECT.parent}"}) as process:
        while not path.exists() or not path.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        child = psutil.Process(int(path.read_text()))
        process.send_signal(number)
    child.wait(20)


def refuse(subject: str) -> str:
    working_on(subject)
    return f"{subject} in {os.getpid()}"


def fail() -> None:
    raise FileNotFoundError(2, "No such file", "b")


def crash() -> None:
    working_on("b.parquet")
    os.abort()


def take(count: int) -> int:
    working_on("b.parquet")
    return len(bytearray(count))


def hang() -> None:
    working_on("b.parquet")
    time.sleep(60)


def talk() -> None:
    os.write(1, b"what a library prints")
    print("more")


def problem_of(function, *arguments):
    with pytest.raises(JobError) as caught:
        in_child(function, *arguments, subject="a")
    (problem,) = caught.value.problems
    assert problem.code == 66
    return problem.subject, problem.found


def test_a_function_returns_from_another_process_that_is_used_again():
    signs = []
    first = in_child(refuse, "b", subject="a", progress=lambda: signs.append(1))
    assert first.startswith("b in ") and first != f"b in {os.getpid()}"
    assert in_child(talk, subject="a") is None
    assert in_child(refuse, "b", subject="a") == first and signs == [1]
    with pytest.raises(FileNotFoundError) as caught:
        in_child(fail, subject="a")
    assert caught.value.filename == "b"


def test_an_idle_process_ends():
    pid = int(in_child(refuse, "b", subject="a").rpartition(" ")[2])
    psutil.Process(pid).wait(20)
    assert not [child for child in bounded._idle if child._process.pid == pid]


def test_what_ends_the_process_is_a_problem_of_the_file():
    assert problem_of(crash) == ("b.parquet", "cannot be read: its reader crashed (SIGABRT)")
    assert in_child(take, 1 << 20, subject="a") == 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA")
def test_memory_is_limited():
    found = "cannot be read: its reader needs more than 512 MiB of memory"
    assert problem_of(take, 600 << 20) == ("b.parquet", found)
    assert in_child(take, 600 << 20, subject="a", memory=1 << 30) == 600 << 20
    assert problem_of(take, 600 << 20) == ("b.parquet", found)


def test_time_is_limited(monkeypatch):
    monkeypatch.setattr(bounded, "_PATIENCE", 3.0)
    assert problem_of(hang) == ("b.parquet", "cannot be read: its reader took longer than 3 s")
    until = time.monotonic() + 20
    while _has_reader():
        assert time.monotonic() < until
        time.sleep(0.01)


def _has_reader() -> bool:
    """Whether a child process that reads is alive; one that was killed is a zombie for a moment."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # so does a zombie
            if "bounded" in " ".join(child.cmdline()):
                return True
    return False


def test_a_signal_to_the_group_of_a_process_does_not_reach_its_reader():
    """As torchrun stops a rank: the file would be blamed for the end of its reader."""
    assert in_child(os.getpgrp, subject="a") not in (os.getpgrp(), 0)
