"""`make mutation`: break the pure modules in many small ways, and count which changes no test notices.

mutmut derives module names from paths, so packages and tests are copied side by side into build/mutation, one copy
for each group below. The table that this prints is committed under benchmarks/results.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
PACKAGES = ("sdjob", "sdlaunch", "sdtrain", "sddemo")
KILLED, SURVIVED = "killed", "survived"
# Tests that read the sources, which mutmut rewrites.
DESELECTED = ("tests/sdjob/test_protocol.py::test_no_literal_of_the_protocol_is_spelled_elsewhere",)


@dataclass(frozen=True)
class Group:
    """Pure modules of one package, and the fast tests that must notice a change in them."""

    package: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS = (
    Group(
        "sdjob",
        (
            "settings/compatibility.py",
            "settings/presets.py",
            "settings/steps.py",
            "settings/advice.py",
            "output/fingerprint.py",
            "formatting.py",
            "protocol.py",
            "redact.py",
        ),
        (
            "tests/sdjob/settings",
            "tests/sdjob/output",
            "tests/sdjob/test_formatting.py",
            "tests/sdjob/test_protocol.py",
            "tests/sdjob/test_redact.py",
        ),
    ),
    Group(
        "sdlaunch",
        (
            "settings/names.py",
            "supervise/verdict.py",
            "cluster/platforms.py",
            "command.py",
        ),
        (
            "tests/sdlaunch/settings/test_names.py",
            "tests/sdlaunch/supervise/test_verdict.py",
            "tests/sdlaunch/cluster/test_platforms.py",
            "tests/sdlaunch/cluster/test_cluster.py",
            "tests/sdlaunch/test_command.py",
        ),
    ),
    Group(
        "sdtrain",
        (
            "objective/process.py",
            "optim/lr_schedule.py",
            "reporting/anomalies.py",
            "data/sampling.py",
            "data/buckets.py",
        ),
        (
            "tests/sdtrain/objective",
            "tests/sdtrain/optim",
            "tests/sdtrain/reporting",
            "tests/sdtrain/data/test_sampling.py",
            "tests/sdtrain/data/test_buckets.py",
        ),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=[group.package for group in GROUPS], help="one package alone")
    arguments = parser.parse_args()
    rows: dict[str, Counter[str]] = {}
    survivors: list[str] = []
    for group in GROUPS:
        if arguments.only in (None, group.package):
            folder = _laid_out(group)
            subprocess.run(["mutmut", "run", f"--max-children={arguments.processes}"], cwd=folder, check=True)
            _collect(folder, rows, survivors)
    print(_table(rows, survivors))
    return 0


def _laid_out(group: Group) -> Path:
    """Copy packages and tests into a folder with mutmut's settings for one group."""
    folder = HOME / "build" / "mutation" / group.package
    shutil.rmtree(folder, ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(HOME / "project" / package, folder / package)
    shutil.copytree(HOME / "tests", folder / "tests")
    settings = {
        "source_paths": [group.package],
        "only_mutate": [f"{group.package}/{module}" for module in group.modules],
        "also_copy": [package for package in PACKAGES if package != group.package],
        "pytest_add_cli_args": ["-m", "not long", *(f"--deselect={test}" for test in DESELECTED)],
        "pytest_add_cli_args_test_selection": list(group.tests),
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    pytest = (HOME / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.pytest.ini_options]")[2]
    pytest = pytest.partition("\n[")[0].replace('["project", "."]', '["."]')
    text = "\n".join(["[tool.pytest.ini_options]", pytest, "[tool.mutmut]", *lines, ""])
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def _collect(folder: Path, rows: dict[str, Counter[str]], survivors: list[str]) -> None:
    """Read mutmut's verdicts: one line of `mutmut results --all true` for each mutant."""
    command = ["mutmut", "results", "--all", "true"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    for line in answer.splitlines():
        name, separator, verdict = line.strip().rpartition(": ")
        if separator:
            module = name.rpartition(".")[0]
            rows.setdefault(module, Counter())[verdict] += 1
            if verdict == SURVIVED:
                survivors.append(name)


def _table(rows: dict[str, Counter[str]], survivors: list[str]) -> str:
    """Markdown: a row for each module, then the names of the mutants that survived."""
    versions = f"Python {sys.version.split()[0]}, mutmut {version('mutmut')}, {os.cpu_count()} cores"
    lines = [f"# Mutation testing, {datetime.date.today().isoformat()}", "", versions, ""]
    lines += ["| module | mutants | killed | survived | other |", "|---|---|---|---|---|"]
    for module, count in rows.items():
        total, killed, survived = count.total(), count[KILLED], count[SURVIVED]
        lines.append(f"| {module} | {total} | {killed} | {survived} | {total - killed - survived} |")
    return "\n".join(
        [*lines, "", "Survivors (`mutmut show NAME` in build/mutation/PACKAGE):", "", *survivors]
    )


if __name__ == "__main__":
    sys.exit(main())
