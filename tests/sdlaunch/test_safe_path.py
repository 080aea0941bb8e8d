"""Files that lie in the current folder, or next to train.sh, replace no module of Python or of its packages."""

import os
import shutil
import subprocess
import sys

import pytest

from sdjob import protocol
from sdlaunch import child_process
from tests.sdlaunch.workspace import HOME, clean_environment

SHADOWS = ("random", "json", "signal", "dataclasses", "yaml", "pydantic", "torch", "sdjob", "sitecustomize_x")
CANARY = "open({!r}, 'a').write(__name__ + ' was imported\\n')\n"


@pytest.fixture
def trap(tmp_path):
    """A folder of modules that tell when they are imported."""
    folder = tmp_path / "trap"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(CANARY.format(str(tmp_path / "harmed")))
    return folder


@pytest.mark.parametrize("python_path", ["", ":/nonexistent", "/nonexistent:"])
def test_the_current_folder_of_the_launcher(trap, tmp_path, workspace, python_path):
    argv = ["bash", str(HOME / "train.sh"), "plan"]
    environ = clean_environment(**workspace, PYTHONPATH=python_path)
    done = subprocess.run(argv, env=environ, cwd=trap, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "harmed").exists()


def test_the_folder_of_the_project(trap, tmp_path, workspace):
    for name in ("train.sh", "entrypoint.py"):
        shutil.copy(HOME / name, trap / name)
    (trap / "project").symlink_to(HOME / "project")
    environ = clean_environment(**workspace, LAUNCHER_PYTHON=sys.executable)
    done = subprocess.run(
        ["bash", str(trap / "train.sh"), "plan"], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "harmed").exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the variable is of Python 3.11")
def test_the_current_folder_of_a_child_process(trap, tmp_path):
    environ = {**os.environ, "PYTHONPATH": child_process.python_path(None, ":", "/a:", "/b")}
    assert environ["PYTHONPATH"] == "/a:/b"
    code = "import sys, random, json, dataclasses; print(sys.path[0])"
    for argv in (["-c", code], ["-m", "json.tool", "--help"]):
        options = child_process.options([sys.executable, *argv], environ)
        subprocess.run(**options, cwd=trap, check=True, stdout=subprocess.DEVNULL, timeout=60)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the variable is of Python 3.11")
def test_a_script_imports_its_neighbours_and_what_starts_it_does_not(trap, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "neighbour.py").write_text("VALUE = 7")
    (tmp_path / "mine" / "train.py").write_text(
        "import neighbour, random; print(neighbour.VALUE, random.randint(1, 1))"
    )
    environ = {
        "PYTHONPATH": str(HOME / "project"),
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    argv = [sys.executable, "-m", "sdjob.rank_output", str(tmp_path / "mine" / "train.py")]

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, env={**environ, **more}, cwd=trap, capture_output=True, text=True, timeout=60
        )

    done = run(**protocol.SAFE_PATH)
    assert (done.stdout, done.stderr) == ("7 1\n", "")
    assert not (tmp_path / "harmed").exists()
    assert "No module named 'neighbour'" in run(PYTHONSAFEPATH="1").stderr  # as the user wants it
