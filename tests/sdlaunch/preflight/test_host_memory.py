"""The kernel kills a rank for memory: its counters, and a real case in a control group of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdlaunch.supervise.processes import oom_kills
from tests.support.launcher import supervised

LIMIT = 400 << 20
HOG = """
if os.environ["RANK"] == "1":
    hog = bytearray(800 << 20)
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


def test_a_rank_that_takes_too_much_memory_is_71(group, tmp_path, place, monkeypatch):
    enter = f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid())); "
    real = subprocess.Popen

    def inside(argv, **options):
        again = f"os.execv({sys.executable!r}, {argv!r})"
        return real([sys.executable, "-c", enter + again], **options)

    monkeypatch.setattr(subprocess, "Popen", inside)
    ended = supervised(tmp_path, place, HOG, as_worker=True, NPROC_PER_NODE="2")
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
    assert oom_kills(tmp_path) == count
