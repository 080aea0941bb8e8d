import subprocess
import tempfile
from pathlib import Path

import pytest

from sdlaunch.verbs import check
from tests.sdlaunch.workspace import make_workspace


@pytest.fixture(autouse=True)
def no_comparison(monkeypatch):
    """`check` in this process does not start another one with torch; test_check.py tests that."""
    monkeypatch.setattr(check, "_answer", lambda *_: ((), ()))


@pytest.fixture
def workspace(tmp_path):
    """The environment of a job that can start."""
    return make_workspace(tmp_path)


@pytest.fixture
def tmpfs():
    """tmpfs(size): a small file system of its own, with a short path."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="tmpfs-"))
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(["mount", *options], capture_output=True, text=True)
        if done.returncode:
            folder.rmdir()
            pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()
