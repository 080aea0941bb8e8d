"""Tests of processes: the launcher as PID 1 of a container, here of a separate PID namespace."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.sdlaunch.workspace import clean_environment
from tests.support.launcher import DRIVER, PRELUDE

UNSHARE = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")


def _namespaces() -> str:
    """Why a PID namespace cannot be made here; empty: it can."""
    try:
        done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return done.stderr.strip()


@pytest.fixture
def as_first(tmp_path, workspace):
    """Starts a script under the launcher, which is PID 1; gives the process and the launcher's PID outside."""
    if reason := _namespaces():
        pytest.skip(f"no PID namespace: {reason}")
    started = []

    def start(script: str, **variables: str) -> tuple[subprocess.Popen[str], int]:
        path = tmp_path / "fake.py"
        path.write_text(PRELUDE + script)
        process = subprocess.Popen(
            [*UNSHARE, *DRIVER, str(path)],
            env=clean_environment(**workspace, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (found := children.read_text().split()):
            time.sleep(0.01)
        return process, int(found[0])

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout
    line = next(line for line in process.stdout if word in line)
    return line.partition(word)[2]


ORPHANS = """
for _ in range(5):  # each leaves a child behind that ends a little later, as a daemon does
    code = "import os, time; os._exit(0) if os.fork() else (time.sleep(0.2), os._exit(0))"
    subprocess.run([sys.executable, "-S", "-c", code], start_new_session=True, check=True)
assert os.getppid() == 1, os.getppid()
def zombies():
    states = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                states.append(open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[0])
            except OSError:
                pass
    return states.count("Z")
time.sleep(2.0)
say(f"[rank 0] zombies: {zombies()}")
"""


def test_orphans_are_reaped_while_the_job_runs(as_first):
    process, _ = as_first(ORPHANS)
    assert until(process, "zombies:").strip() == "0"
    assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGTERM], 75), ([signal.SIGUSR1], 75), ([signal.SIGINT] * 2, 130)]
)
def test_signals_reach_the_job(as_first, signals, code):
    answer = "note(0, 75)" if code == 75 else "time.sleep(60)"
    script = f"say('[rank 0] ready'); assert asked(); {answer}"
    process, launcher = as_first(script, ONE_REQUEST="0.2")
    until(process, "ready")
    os.kill(launcher, signals[0])
    for number in signals[1:]:
        until(process, "saving and stopping")
        time.sleep(0.3)
        os.kill(launcher, number)
    process.communicate(timeout=30)
    assert process.returncode == code


def test_the_exit_code_of_a_failure_comes_out(as_first):
    process, _ = as_first("note(0, 66); sys.exit(1)")
    process.communicate(timeout=30)
    assert process.returncode == 66
