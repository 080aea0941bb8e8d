"""`doctor`: what this machine and this Python can do, without any job.

The launcher does not import PyTorch: a short-lived process reports what it can do.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjob.formatting import as_json, in_units
from sdjob.problems import Problem, exit_code, no_hardware
from sdlaunch import packages
from sdlaunch.child_process import python_path
from sdlaunch.cluster import devices
from sdlaunch.display import run_records
from sdlaunch.display import text as display
from sdlaunch.inputs import temporary_folder
from sdlaunch.inputs.temporary_folder import TemporaryFolder
from sdlaunch.preflight import system_limits
from sdlaunch.timeouts import NoAnswer, ask

_TIMEOUT = 300.0  # seconds; a cold file system, and drivers that initialise eight devices


@dataclass(frozen=True)
class Diagnosis:
    """What was found, as plain values, and what keeps any job from running here (all of it 69)."""

    found: Mapping[str, Any]
    problems: tuple[Problem, ...]

    @property
    def code(self) -> int:
        return exit_code(self.problems)

    def to_json(self) -> str:
        whole = {**self.found, "problems": [problem.to_dict() for problem in self.problems]}
        return as_json(whole)


def examine(home: Path, environ: Mapping[str, str]) -> Diagnosis:
    """Examine everything; `home` is the folder of train.sh, whose docker/ lists the versions tested together."""
    found_devices = devices.find("auto", environ)
    answers, problems = _ask_torch(home, environ)
    with contextlib.suppress(NoAnswer):
        problems = packages.broken(environ, _TIMEOUT) or problems  # where PyTorch is broken, it names it
    cuda = bool(answers and answers["torch"]["cuda"])
    files = ("", "-cuda", "-colossal") if cuda else ("", "-torch")
    tested = packages.pinned_versions(*files, folder=home / "docker")
    installed = {name: run_records.version_of(name) for name in tested}
    missing = sorted(name for name, version in installed.items() if version is None)
    if missing:
        problems.append(packages.not_installed(missing, versions=tested))
    temporary = temporary_folder.find(environ)
    problems += temporary.problems
    found = {
        "python": f"{sys.version.split()[0]} ({sys.executable})",
        "machine": {**_machine(found_devices), "temporary files": _temporary(temporary)},
        **(answers or {}),
        "versions": installed,
        "not as proven": {
            name: f"{version}, proven with {tested[name]}"
            for name, version in installed.items()
            if version and version.partition("+")[0] != tested[name]
        },
    }
    return Diagnosis(found, (*found_devices.problems, *problems))


def render(diagnosis: Diagnosis) -> str:
    found = diagnosis.found
    if not found:
        return display.problems(diagnosis.problems)
    sections = [f"Python {found['python']}", _rows("Machine", found["machine"].items())]
    if "torch" in found:
        rows = [
            (f"{'+' if each['available'] else '-'} {name}", each["why"] or _details(each))
            for name, each in found["devices"].items()
        ]
        sections += [
            _rows("PyTorch", [(name, version or "none") for name, version in found["torch"].items()]),
            _rows("Devices (+ can be used, - cannot)", rows),
            _answers("Communication between processes", found["distributed"]),
            _answers(f"Attention, tried on {found['device']}", found["attention"]),
            _answers("Compiling and optional packages", found["compiling and optional packages"]),
            _answers("Plugins", found["plugins"]),
        ]
    versions, differing = found["versions"], found["not as proven"]
    alike = sum(version is not None and name not in differing for name, version in versions.items())
    sections.append(_rows(f"Versions: {alike} of {len(versions)} as proven", differing.items()))
    usable = f"no problems: jobs can run on {found.get('device')}"
    return "\n\n".join([*sections, display.problems(diagnosis.problems) if diagnosis.problems else usable])


def _ask_torch(home: Path, environ: Mapping[str, str]) -> tuple[dict[str, Any] | None, list[Problem]]:
    """What `python -m sdtrain.tools.doctor` reports, or why it does not."""
    path = python_path(home / "project", environ.get("PYTHONPATH"))
    arguments = ["-m", "sdtrain.tools.doctor"]
    try:
        return ask(arguments, {**environ, "PYTHONPATH": path}, _TIMEOUT), []
    except NoAnswer as error:
        command = f"PYTHONPATH={path} {sys.executable} {' '.join(arguments)}"
        remedy = f"Run it to see the whole error: {command}"
        return None, [no_hardware("PyTorch", str(error), remedy)]


def _machine(found: devices.Devices) -> dict[str, str]:
    driver = re.search(r"Module\s+(\S+)", _text("/proc/driver/nvidia/version"))
    shm = system_limits.SHM
    return {
        "system": run_records.system_name(),
        "cores": str(found.cores),
        "device": "; ".join([found.why, *found.warnings]),
        "user": f"{os.getuid()}, group {os.getgid()}",
        "shared memory": in_units(shutil.disk_usage(shm).free) if shm.is_dir() else "none",
        "NVIDIA driver": driver.group(1) if driver else "none",
    }


def _temporary(found: TemporaryFolder) -> str:
    return "no usable folder" if found.problems else "; ".join(found.warnings) or str(found.path)


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _details(each: Mapping[str, Any]) -> str:
    """The devices of one type that are there."""
    return "; ".join([*each.get("each", []), *(["computes in bf16"] if each.get("bf16") else [])])


def _answers(title: str, answers: Mapping[str, str]) -> str:
    """Names that work, and names that do not, with the reason."""
    return _rows(title, ((f"{'-' if why else '+'} {name}", why) for name, why in answers.items()))


def _rows(title: str, rows: Iterable[tuple[str, str]]) -> str:
    return f"{title}\n{display.table((name, text, '') for name, text in rows)}".rstrip()
