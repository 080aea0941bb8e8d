"""The rules of the structure: who may import whom, and no shell anywhere."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "project").rglob("*.py"), ROOT / "entrypoint.py"])


def test_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--config", ROOT / "pyproject.toml", "--no-cache"],
        cwd=ROOT / "project",
        env={**os.environ, "PYTHONPATH": str(ROOT / "project"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def imported(path: Path) -> set[str]:
    """Top-level names of the packages that a file imports, lazily or not."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_only_the_colossal_strategy_may_import_colossalai() -> None:
    allowed = ROOT / "project" / "sdtrain" / "strategies" / "colossalai.py"
    assert [path for path in SOURCES if "colossalai" in imported(path) and path != allowed] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_shell_is_ever_started(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in ("os.system", "os.popen", "subprocess.getoutput", "eval", "exec"), called
        for keyword in node.keywords:
            if keyword.arg == "shell":
                assert ast.unparse(keyword.value) == "False", ast.unparse(node)


def test_modules_stay_small() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    del lines["project/sdjob/settings/run_spec.py"]  # a table: a few lines for each setting, and nothing else
    assert {path: count for path, count in lines.items() if count > 450} == {}
