"""Tests of rank_output: where the output of a rank goes; that it arrives is tested in supervise/test_rank_pipes.py."""

import os
import subprocess
import sys

import pytest

from sdjob import protocol
from tests.sdlaunch.workspace import HOME


def run(*words, **variables):
    environ = {**os.environ, "PYTHONPATH": str(HOME / "project"), **variables}
    return subprocess.run(
        [sys.executable, "-m", "sdjob.rank_output", *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "echo.py"
    path.write_text("import sys; print(__name__, sys.argv[1:], sys.path[0])")
    return path


def test_without_a_launcher_the_script_writes_where_it_was_started(script):
    assert run(str(script), "--x", "a b").stdout == f"__main__ ['--x', 'a b'] {script.parent}\n"


@pytest.mark.parametrize("exists", [False, True])
def test_without_a_reader_too(script, tmp_path, exists):
    """A launcher that is gone, with or without its folder."""
    if exists:
        os.mkfifo(tmp_path / "0")
    variables = {**protocol.launcher_variables(tmp_path), "LOCAL_RANK": "0"}
    assert run(str(script), **variables).stdout.startswith("__main__")


def test_a_rank_outlives_its_launcher(tmp_path):
    """What it prints while it saves must not end it."""
    os.mkfifo(tmp_path / "0")
    reader = os.open(tmp_path / "0", os.O_RDWR | os.O_NONBLOCK)
    code = "input()\nfor n in range(1000): print('x' * 99, flush=True)\nopen('saved', 'w').close()"
    (tmp_path / "save.py").write_text(code)
    variables = {**protocol.launcher_variables(tmp_path), "LOCAL_RANK": "0", "RANK": "5"}
    rank = subprocess.Popen(
        [sys.executable, "-m", "sdjob.rank_output", "save.py"],
        env={**os.environ, "PYTHONPATH": str(HOME / "project"), **variables},
        stdin=subprocess.PIPE,
        cwd=tmp_path,
    )
    os.set_blocking(reader, True)
    assert os.read(reader, 100) == protocol.introduction(5, 0)
    os.close(reader)
    rank.communicate(b"\n", timeout=20)
    assert (rank.returncode, (tmp_path / "saved").exists()) == (0, True)
