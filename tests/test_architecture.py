"""The rules of the structure: who may import whom, and no shell anywhere."""

from __future__ import annotations

import ast
import os
import re
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


# What these write to is a folder that they have just made, by a random name or in the place of what was there, or is
# none of /output; everything else is written by sdjob/writing.py, which follows no links.
WRITERS = """
sdjob/dataset/formats/parquet.py sdjob/output/layout.py sdjob/output/run_settings.py sdjob/rank_output.py
sdjob/writing.py sdlaunch/display/console.py sdlaunch/generate_docs.py sdlaunch/inputs/pip_install.py
sdlaunch/inputs/temporary_folder.py sdlaunch/preflight/output.py sdlaunch/supervise/rank_pipes.py
sdtrain/checkpoint/checkpoint.py sdtrain/checkpoint/state_io.py sdtrain/export/export.py sdtrain/export/webui.py
sdtrain/model/convert.py sdtrain/tools/benchmark.py sdtrain/tools/benchmark_case.py
"""


def writes(call: ast.Call) -> bool:
    """Whether a call may write or delete by itself: it opens for writing, or follows a link that is there."""
    called = ast.unparse(call.func)
    arguments = [ast.unparse(value) for value in (*call.args, *(word.value for word in call.keywords))]
    if called == "os.open":
        return any(flag in each for each in arguments for flag in ("O_WRONLY", "O_RDWR", "O_CREAT"))
    if called.endswith(".open"):
        return any(re.fullmatch(r"'([wax]b?\+?|r\+b?|rb\+)'", each) for each in arguments)
    owner, _, name = called.rpartition(".")
    return bool(owner) and owner != "writing" and name in ("rmtree", "touch", "write_text", "write_bytes")


def test_below_the_output_folder_one_module_writes() -> None:
    found = {
        str(path.relative_to(ROOT / "project"))
        for path in SOURCES
        if path.is_relative_to(ROOT / "project") and not path.is_relative_to(ROOT / "project" / "sddemo")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and writes(node)
    }
    assert found == {*WRITERS.split()}


def test_json_and_yaml_of_others_have_one_reader() -> None:
    """Of the launcher and the contract, which read first; it alone knows what a reader may raise."""
    loaders = ("json.load", "json.loads", "yaml.load", "yaml.safe_load", "yaml.compose")
    found = {
        str(path.relative_to(ROOT / "project"))
        for package in ("sdjob", "sdlaunch")
        for path in (ROOT / "project" / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in loaders
    }
    # The rows of a table of metadata are read by the million, with a hook of their own.
    assert found == {"sdjob/reading.py", "sdjob/dataset/formats/metadata_rows.py"}


def test_modules_stay_small() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    del lines["project/sdjob/settings/run_spec.py"]  # a table: a few lines for each setting, and nothing else
    assert {path: count for path, count in lines.items() if count > 350} == {}


def test_functions_stay_small() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: lines for name, lines in long.items() if lines > 50} == {}


BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)


def depth(node: ast.AST) -> int:
    """How many blocks are nested; an elif is not deeper than its if."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        inside = 0 if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else depth(child)
        deepest = max(deepest, inside + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def test_blocks_are_not_nested_deeply() -> None:
    deep = {
        f"{path.relative_to(ROOT)}:{node.name}": depth(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: levels for name, levels in deep.items() if levels > 4} == {}


FOLDERS = sorted({path.parent for path in SOURCES if path.parent != ROOT})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_is_small_and_says_what_it_is(folder: Path) -> None:
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= 12
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    what, empty, start, may_import = about.splitlines()[:4]
    assert (
        what and not empty and start.startswith("Start reading: ") and may_import.startswith("May import: ")
    )


def named_modules(path: Path) -> set[str]:
    """The modules that a test file names in the sentence "Tests of …" of its docstring, dotted."""
    about = (ast.get_docstring(ast.parse(path.read_text())) or "").replace(".py", "").replace("/", ".")
    sentences = re.findall(r"Tests of ((?:[^.:]|\.(?=\w))+)", about)
    return {word for sentence in sentences for word in re.findall(r"[\w.]+", sentence)}


def test_every_module_has_a_test_file() -> None:
    """Of its name, in the mirrored folder, or one there or above that names it, or one anywhere that names its path."""
    tests = {path: named_modules(path) for path in (ROOT / "tests").rglob("test_*.py")}
    modules = [path.relative_to(ROOT / "project") for path in SOURCES if path.parent != ROOT]
    missing = [
        str(module)
        for module in modules
        if module.name not in ("__init__.py", "__main__.py")
        and not (ROOT / "tests" / module.parent / f"test_{module.name}").exists()
        and not any(
            name == ".".join(module.with_suffix("").parts)
            or (
                name.split(".")[-1] == module.stem
                and (ROOT / "tests" / module.parent).is_relative_to(path.parent)
            )
            for path, names in tests.items()
            for name in names
        )
    ]
    assert missing == []
