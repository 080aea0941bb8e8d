"""A rank and the processes that it must not outlive."""

import os
import signal
import subprocess
import sys

from sdtrain.runtime.parents import Parents
from tests.support import worker


def test_a_process_that_was_started_by_hand_has_no_parents():
    assert Parents.of_this({}) is None


def test_a_parent_that_is_alive_is_not_gone():
    assert not Parents(os.getppid(), os.getpid(), 1).gone()
    assert not Parents(os.getppid(), 1, 1).gone()  # of another user, or PID 1 of a container
    assert not Parents(os.getppid(), None, 1).gone()


def test_a_launcher_and_a_torchrun_that_have_ended_are_gone():
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert Parents(os.getppid(), ended.pid, 1).gone()
    assert Parents(ended.pid, None, 1).gone()


RANK = """
import os, sys, time
from sdtrain.runtime.parents import Parents
parents = Parents.of_this()
print(os.getpid(), parents.grace, flush=True)
time.sleep(60)
"""
TORCHRUN = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"


def test_the_kernel_tells_a_rank_that_its_torchrun_was_killed(tmp_path):
    environ = {**worker.environment(), "TORCHELASTIC_RUN_ID": "x", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "7"}
    torchrun = subprocess.Popen(
        [sys.executable, "-c", TORCHRUN, RANK], env=environ, stdout=subprocess.PIPE, text=True
    )
    assert torchrun.stdout
    pid, grace = torchrun.stdout.readline().split()
    assert float(grace) == 7
    torchrun.send_signal(signal.SIGKILL)
    # The pipe closes when the rank, which holds it too, has ended.
    assert torchrun.communicate(timeout=10) == ("", None), pid
