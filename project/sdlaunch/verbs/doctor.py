"""`doctor`: what this machine and this Python can do for a job, without any job.

PyTorch is asked in a process of its own, which ends; the launcher does not import it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sdjob.formatting import in_units
from sdjob.problems import Problem, exit_code, no_hardware
from sdlaunch.cluster import devices
from sdlaunch.display import console
from sdlaunch.display import text as display
from sdlaunch.preflight import system_limits

_PATIENCE = 300.0  # seconds; a cold file system, and drivers that initialise eight devices


@dataclass(frozen=True)
class Diagnosis:
    """What was found, as plain values, and what keeps every job from running here (all of it 69)."""

    found: Mapping[str, Any]
    problems: tuple[Problem, ...]

    @property
    def code(self) -> int:
        return exit_code(self.problems)

    def to_json(self) -> str:
        whole = {**self.found, "problems": [problem.to_dict() for problem in self.problems]}
        return json.dumps(whole, indent=2, ensure_ascii=False)


def run(home: Path, environ: Mapping[str, str], *, as_json: bool) -> int:
    """Prints the diagnosis; the exit code."""
    diagnosis = examine(home, environ)
    console.show(diagnosis.to_json() if as_json else render(diagnosis), sys.stdout)
    return diagnosis.code


def examine(home: Path, environ: Mapping[str, str]) -> Diagnosis:
    """Looks at everything; `home` is the folder of train.sh, whose docker/ says which versions are proven."""
    here = devices.find("auto", environ)
    answers, problems = _ask_torch(home, environ)
    proven = _proven(home, cuda=bool(answers and answers["torch"]["cuda"]))
    installed = {name: _version(name) for name in proven}
    missing = sorted(name for name, version in installed.items() if version is None)
    if missing:
        remedy = f"Install: {sys.executable} -m pip install {' '.join(f'{n}=={proven[n]}' for n in missing)}"
        problems.append(no_hardware("Python packages", f"{', '.join(missing)} not installed", remedy))
    found = {
        "python": f"{sys.version.split()[0]} ({sys.executable})",
        "machine": _machine(here),
        **(answers or {}),
        "versions": installed,
        "not as proven": {
            name: f"{version}, proven with {proven[name]}"
            for name, version in installed.items()
            if version and version.partition("+")[0] != proven[name]
        },
    }
    return Diagnosis(found, (*here.problems, *problems))


def render(diagnosis: Diagnosis) -> str:
    """The diagnosis for people."""
    found = diagnosis.found
    sections = [f"Python {found['python']}", _rows("Machine", found["machine"].items())]
    if "torch" in found:
        kinds = {name: each["why"] or _what(each) for name, each in found["devices"].items()}
        usable = {name for name, each in found["devices"].items() if each["available"]}
        sections += [
            _rows("PyTorch", found["torch"].items()),
            _rows("Devices", ((_mark(name in usable) + name, text) for name, text in kinds.items())),
            _answers("Communication between processes", found["distributed"]),
            _answers(f"Attention, tried on {found['device']}", found["attention"]),
            _answers("Plugins", found["plugins"]),
        ]
    versions, differing = found["versions"], found["not as proven"]
    alike = sum(version is not None and name not in differing for name, version in versions.items())
    sections.append(_rows(f"Versions: {alike} of {len(versions)} as proven", differing.items()))
    problems = diagnosis.problems
    sections.append(
        display.problems(problems) if problems else "no problems: jobs can run on " + found["device"]
    )
    return "\n\n".join(sections)


def _ask_torch(home: Path, environ: Mapping[str, str]) -> tuple[dict[str, Any] | None, list[Problem]]:
    """What `python -m sdtrain.tools.doctor` answers, or why it does not."""
    path = os.pathsep.join(filter(None, [str(home / "project"), environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "sdtrain.tools.doctor"]
    try:
        reply = subprocess.run(
            command,
            env={**environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
        )
        answers: dict[str, Any] = json.loads(reply.stdout)
    except subprocess.TimeoutExpired:
        reason = f"no answer within {_PATIENCE:.0f} s"
    except (OSError, ValueError):
        reason = (reply.stderr.strip().splitlines() or [f"ended with {reply.returncode}"])[-1]
    else:
        return answers, []
    remedy = f"See for yourself: PYTHONPATH={path} {' '.join(command)}"
    return None, [no_hardware("PyTorch", reason, remedy)]


def _machine(here: devices.Devices) -> dict[str, str]:
    system = os.uname()
    driver = re.search(r"Module\s+(\S+)", _text("/proc/driver/nvidia/version"))
    shm = os.statvfs(system_limits.SHM) if system_limits.SHM.is_dir() else None
    return {
        "system": f"{system.sysname} {system.release} {system.machine}",
        "cores": str(here.cores),
        "user": f"{os.getuid()}, group {os.getgid()}",
        "shared memory": in_units(shm.f_bavail * shm.f_frsize) if shm else "none",
        "NVIDIA driver": driver.group(1) if driver else "none",
    }


def _proven(home: Path, *, cuda: bool) -> dict[str, str]:
    """Names and versions of the set that was tested together, as far as this project says."""
    files = (
        "requirements.txt",
        *(("requirements-cuda.txt", "requirements-colossal.txt") if cuda else ("requirements-torch.txt",)),
    )
    lines = "\n".join(_text(home / "docker" / name) for name in files)
    return dict(re.findall(r"^([\w.-]+)==(\S+)", lines, re.MULTILINE))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _what(each: Mapping[str, Any]) -> str:
    """The devices of one kind that are there."""
    return "; ".join([*each.get("each", []), *(["computes in bf16"] if each.get("bf16") else [])])


def _mark(good: bool) -> str:
    return "+ " if good else "- "


def _answers(title: str, answers: Mapping[str, str]) -> str:
    """Names that work, and names that do not with the reason."""
    return _rows(title, ((_mark(not why) + name, why) for name, why in answers.items()))


def _rows(title: str, rows: Iterable[tuple[str, str]]) -> str:
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {text}".rstrip() for name, text in rows)])
