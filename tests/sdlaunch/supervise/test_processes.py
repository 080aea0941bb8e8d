"""Processes below the launcher, and the kernel's count of those killed for memory, with a real case in a control group.

The launcher as PID 1, which reaps orphans, is in test_first_process.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdlaunch.supervise import processes
from tests.support.launcher import supervised
from tests.support.worker import environment

LIMIT = 900 << 20  # torchrun alone takes a third of it
HOG = """
if os.environ["RANK"] == "1":
    hog = bytearray(1600 << 20)
time.sleep(60)
"""


@pytest.fixture
def group():
    """A memory group (cgroup v1) with a limit; gone afterwards."""
    folder = Path(f"/sys/fs/cgroup/memory/sdjob-test-{os.getpid()}")
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"no memory group can be made here: {error}")
    yield folder
    folder.rmdir()


def test_a_rank_that_takes_too_much_memory_is_71(group, tmp_path, workspace, monkeypatch):
    enter = f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid())); "
    real = subprocess.Popen

    def inside(argv, **options):
        again = f"os.execv({sys.executable!r}, {argv!r})"
        return real([sys.executable, "-c", enter + again], **options)

    monkeypatch.setattr(subprocess, "Popen", inside)
    ended = supervised(tmp_path, workspace, HOG, as_worker=True, NPROC_PER_NODE="2")
    monkeypatch.undo()
    ended.end(71)
    assert ended.failure["class"] == "out of memory"
    assert ended.failure["root_rank"] == 1


V2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        ("0::/job\n", {"job/memory.events": V2, "memory.events": "oom_kill 9\n"}, 2),
        ("0::/\n", {"memory.events": V2}, 2),
        ("0::/of/the/host\n", {"memory.events": V2}, 2),  # a container sees its own group as the root
        ("5:memory:/job\n0::/\n", {"memory/job/memory.oom_control": V1}, 5),
        ("5:cpu:/\n4:memory:/of/the/host\n", {"memory/memory.oom_control": V1}, 5),
        ("0::/\n", {"memory.events": "oom_kill many\n"}, 0),
        (None, {}, 0),
    ],
)
def test_the_counters_of_both_versions(tmp_path, groups, files, count):
    written = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    if groups is not None:
        written["proc/self/cgroup"] = groups
    for name, text in written.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert processes.oom_kills(tmp_path) == count


FAMILY = """
import os, signal, subprocess, sys, time
from sdlaunch.supervise import processes
code = "import os, time; pid = os.fork(); pid and print(os.getpid(), pid, flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, start_new_session=True)
family = [int(word) for word in child.stdout.readline().split()]
assert [each.pid for each in processes.descendants()] == family  # parents first
os.kill(child.pid, signal.SIGSTOP)
while not processes.state(child.pid) == "it is stopped":
    time.sleep(0.01)
processes.kill_all(child.pid)
print(*(processes.state(pid) for pid in family), child.wait(), sep=", ")
"""


def test_the_processes_below_are_found_and_killed_whatever_their_session_and_state():
    """In another process: all that are below it are killed."""
    done = subprocess.run(
        [sys.executable, "-c", FAMILY], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "it has ended, it has ended, -9\n", done.stderr
