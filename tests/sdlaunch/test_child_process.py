"""Children of the launcher end with it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from sdlaunch.child_process import call
from tests.support.worker import PROJECT

CHILD = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
ASK = (
    "import sys, os; from sdlaunch.timeouts import ask; ask(['-c', sys.argv[1], sys.argv[2]], os.environ, 60)"
)
FETCH = (
    "import sys, os; from sdlaunch.inputs.fetch import run; "
    "run([sys.executable, '-c', sys.argv[1], sys.argv[2]], os.environ, 60)"
)
EXPORT = (
    "import sys, os; from pathlib import Path; from types import SimpleNamespace; "
    "from sdlaunch.verbs.export import run; "
    "run(SimpleNamespace(argv=[sys.executable, '-c', sys.argv[1], sys.argv[2]]), os.environ, Path('/'))"
)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
@pytest.mark.parametrize("parent", [ASK, FETCH, EXPORT], ids=["ask", "fetch", "export"])
def test_a_killed_launcher_leaves_no_child(tmp_path, parent):
    path = tmp_path / "pid"
    command = [sys.executable, "-c", parent, CHILD, str(path)]
    with subprocess.Popen(command, env={"PYTHONPATH": str(PROJECT)}) as process:
        while not path.exists() or not path.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        child = psutil.Process(int(path.read_text()))
        process.send_signal(signal.SIGKILL)
    child.wait(20)


def test_a_program_that_a_signal_ends_has_the_exit_code_of_a_shell():
    end = "import os, sys; os.kill(os.getpid(), int(sys.argv[1]))"
    codes = [call([sys.executable, "-c", end, str(number)], os.environ) for number in (9, 15, 0)]
    assert codes == [137, 143, 0]
