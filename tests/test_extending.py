"""The worked examples of docs/extending.md, applied to a copy of project/ and checked there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(python|diff)\n# (.+?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = dict(SECTION.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8")))


def patch(path: Path, diff: str) -> None:
    lines = [line or " " for line in diff.splitlines()]
    before = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    after = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{path.name} has not exactly one place for:\n{before}"
    path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_worked_example(name: str, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "project", project, ignore=shutil.ignore_patterns("__pycache__"))
    checks = []
    for language, header, text in BLOCK.findall(EXAMPLES[name]):
        if header == "check":
            checks.append(text)
        elif language == "diff":
            patch(tmp_path / header, text)
        else:
            assert not (tmp_path / header).exists()
            (tmp_path / header).write_text(text, encoding="utf-8")
    (check,) = checks
    environ = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", check], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_an_example_for_every_extension_point() -> None:
    assert set(EXAMPLES) == {
        "A platform",
        "An optimizer",
        "An emit target",
        "A dataset format",
        "An architecture",
    }
