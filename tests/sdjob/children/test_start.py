"""A program that is started through start.py is itself, with limits, and ends with the process that starts it."""

import os
import resource
import signal
import subprocess
import sys

import pytest

from sdjob.children.start import ending_with_this
from sdlaunch.supervise.processes import start_torchrun
from tests.support.worker import PROJECT

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
SHOW = "grep -E '^Sig(Blk|Ign)' /proc/self/status; env; printf '%s|' \"$@\"; cat"


def run(argv, **options):
    return subprocess.run(argv, capture_output=True, timeout=60, **options)


@LINUX
def test_a_program_has_its_words_variables_input_and_signals():
    argv = ["sh", "-c", SHOW, "sh", "a b", "", "ü", "\udcff\n", "-m"]
    environ = {"PATH": os.environ["PATH"], "PYTHONHOME": "/nonexistent", "LC_ALL": "C.UTF-8", "X": "\udcff"}
    direct, started = (
        run(words, env=environ, input=b"input", check=True) for words in (argv, ending_with_this(argv))
    )
    assert b"\na b||\xc3\xbc|\xff\n|-m|input" in direct.stdout and b"SigIgn" in direct.stdout
    assert started.stdout == direct.stdout


def test_a_program_has_the_process_id_of_its_start():
    argv = ending_with_this([sys.executable, "-S", "-c", "import os; print(os.getpid())"])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert int(process.communicate()[0]) == process.pid


def test_memory_is_limited():
    code = "import resource; print(*resource.getrlimit(resource.RLIMIT_DATA))"
    done = run(ending_with_this([sys.executable, "-S", "-c", code], memory=1 << 30), text=True)
    assert done.stdout.split() == [str(1 << 30), str(resource.getrlimit(resource.RLIMIT_DATA)[1])]


@pytest.mark.parametrize("name", ["no-such-program", "/", "/etc/passwd"])
def test_a_program_that_cannot_be_started_is_named(name):
    done = run(ending_with_this([name]), text=True)
    assert done.returncode == 127
    assert done.stderr.startswith(f"{name}: ") and done.stderr.count("\n") == 1


LATE = """
import os, sys, time
from sdjob.children.start import ending_with_this
argv, parent = ending_with_this(["touch", sys.argv[1]]), os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    time.sleep(0.01)
os.execv(argv[0], argv)
"""


def test_a_program_whose_parent_has_died_before_it_asks_for_the_signal_is_not_run(tmp_path):
    done = run(
        [sys.executable, "-c", LATE, str(tmp_path / "ran")], env={"PYTHONPATH": str(PROJECT)}, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # all who could write there have ended
    assert not (tmp_path / "ran").exists()


PARENT = """
import subprocess, sys
from sdjob.children.start import ending_with_this
program = "trap 'echo asked; exit' TERM; echo begun; sleep 60 >/dev/null 2>&1 & wait; echo left"
subprocess.Popen(ending_with_this(["sh", "-c", program], int(sys.argv[1]))).wait()
"""


@LINUX
@pytest.mark.parametrize(("number", "last"), [(signal.SIGTERM, "asked\n"), (signal.SIGKILL, "")])
def test_a_program_gets_the_signal_when_its_parent_is_killed(number, last):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(int(number))],
        env={"PYTHONPATH": str(PROJECT), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout and parent.stdout.readline() == "begun\n"
        parent.kill()
        assert parent.stdout.read() == last


def test_torchrun_ignores_the_signals_of_schedulers_from_the_first_moment():
    argv = [sys.executable, "-S", "-c", "import sys; sys.stdin.read(); print('lives')"]
    for number in (signal.SIGUSR1, signal.SIGUSR2) * 3:
        with start_torchrun(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            process.send_signal(number)  # while start.py begins
            assert process.communicate(timeout=60)[0] == "lives\n"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGUSR1, signal.SIGUSR2}
