"""The kernel kills a rank for memory, in a control group of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
