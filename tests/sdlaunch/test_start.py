"""The launcher's start, where even its packages may be missing. Tests of entrypoint and display/console."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import entrypoint
from sdlaunch.verbs import doctor
from tests.sdlaunch.place import clean_environment

HOME = Path(__file__).resolve().parents[2]


def started(folder: Path, module: str, source: str) -> subprocess.CompletedProcess[str]:
    """The launcher, with a module of that source before the installed one."""
    (folder / f"{module}.py").write_text(source)
    environ = {**os.environ, "PYTHONPATH": str(folder), "ENV_FILE": str(HOME / "env/demo.env")}
    command = [sys.executable, str(HOME / "entrypoint.py"), "check"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize(("module", "package"), [("dotenv", "python-dotenv"), ("pydantic", "pydantic")])
def test_a_missing_package_is_named_as_pip_knows_it(tmp_path, module, package):
    ended = started(tmp_path, module, f"raise ModuleNotFoundError('No module', name={module!r})")
    assert ended.returncode == 69
    assert ended.stderr == (
        f"Python package {package}: not installed for {sys.executable}\n"
        f"    → Install it: {sys.executable} -m pip install {package}\n"
    )


def test_a_bug_of_the_launcher_is_one_line_with_its_position(tmp_path):
    ended = started(tmp_path, "pydantic", "raise RuntimeError('broken')")
    assert ended.returncode == 70
    assert ended.stderr.startswith("launcher: RuntimeError: broken (pydantic.py:1)\n    → This is a bug")
    assert "Traceback" not in ended.stderr


def test_text_is_utf8_whatever_the_locale_of_the_image_is(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONUTF8"\n')
    python.chmod(0o755)
    environ = {**os.environ, "LAUNCHER_PYTHON": str(python), "LC_ALL": "de_DE.ISO-8859-1"}
    ended = subprocess.run(["bash", HOME / "train.sh"], env=environ, capture_output=True, text=True)
    assert ended.stdout == "1\n"


VERBS = [
    (["--help"], 0),
    (["plan"], 0),
    (["check", "--json"], 0),
    (["emit", "docker"], 0),
    (["emit", "slurm"], 0),
]


@pytest.mark.parametrize(
    ("argv", "code"),
    [*VERBS, (["doctor"], 0), (["lr=x"], 64), (["plan", "lr=x"], 64), (["emit", "docker", "lr=x"], 64)],
)
def test_a_reader_that_has_gone_is_not_an_error(place, monkeypatch, argv, code):
    """As in `plan | head`: what was not read is lost, and the exit code stands."""
    monkeypatch.setattr(doctor, "examine", lambda *_: doctor.Diagnosis({}, ()))
    monkeypatch.setattr(doctor, "render", str)
    for name in ("stdout", "stderr"):
        reading, writing = os.pipe()
        os.close(reading)
        monkeypatch.setattr(sys, name, os.fdopen(writing, "w"))
    assert entrypoint.main(argv, clean_environment(**place)) == code
    sys.stdout.close()  # flushes
    sys.stderr.close()
