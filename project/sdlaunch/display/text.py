"""Plans and problems as text for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sdjob.problems import Problem, exit_code, meaning_of
from sdlaunch.display.redact import redact
from sdlaunch.plan import JobPlan


def check(job: JobPlan, *, as_json: bool) -> str:
    """The problems of a job, or that there are none."""
    if as_json:
        text = _as_json({"problems": [problem.to_dict() for problem in job.problems]})
    else:
        found = problems(job.problems) if job.problems else "no problems: the job can start"
        text = "\n".join([*(_warnings(job.warnings) and [_warnings(job.warnings)]), found])
    return redact(text, job.secrets)


def start(job: JobPlan) -> str:
    """The lines that go before training: inputs, arithmetic, warnings."""
    uses = [
        f"{name.removesuffix('_DIR').lower()}: {about['uses']} ({about['found']})"
        for name, about in job.mounts.items()
    ]
    lines = [*uses, *job.arithmetic, *(f"warning: {warning}" for warning in job.warnings)]
    return redact("\n".join(lines), job.secrets)


def plan(job: JobPlan, *, dim: bool = False) -> str:
    """The whole plan, the most important part last, nearest to the prompt: defaults, settings that follow from others,
    settings that the user made, and what results."""
    unset = {name: each for name, each in job.settings.items() if each.source == "default"}
    others = [name for name in job.settings if name not in unset]
    settings = sorted(others, key=lambda name: name in job.given)
    defaults = table((name, _value(each.value), "") for name, each in unset.items())
    rows = ((name, job.settings[name]) for name in settings)
    sections = [
        ("Settings at their default", _dimmed(defaults) if dim else defaults),
        ("Settings", table((name, _value(each.value), each.source) for name, each in rows)),
        ("Mounts", table((name, about["uses"], about["found"]) for name, about in job.mounts.items())),
        ("Arithmetic", "\n".join(f"  {line}" for line in job.arithmetic)),
        ("Command", job.launch.shell() if job.launch else "  none, because a setting was refused"),
    ]
    if job.warnings:
        sections.append(("Warnings", _warnings(job.warnings)))
    sections.append(("Problems", problems(job.problems) if job.problems else "  none: the job can start"))
    text = "\n\n".join(f"{title}\n{body}" for title, body in sections if body)
    return redact(text, job.secrets)


def plan_json(job: JobPlan) -> str:
    """The whole plan, for programs."""
    return redact(_as_json(job.to_dict()), job.secrets)


def problems(found: Sequence[Problem]) -> str:
    """Every problem as what – found – remedy, and the exit code that results."""
    lines = [f"  {problem.subject}: {problem.found}\n      → {problem.remedy}" for problem in sorted(found)]
    code = exit_code(found)
    number = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    return "\n".join([*lines, f"{number}; exit code {code} ({meaning_of(code).text})."])


def _warnings(found: Iterable[str]) -> str:
    return "\n".join(f"  warning: {warning}" for warning in found)


def _dimmed(text: str) -> str:
    """In the faint type of terminals (ECMA-48)."""
    return f"\033[2m{text}\033[22m"


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _value(value: Any) -> str:
    """A value on one line, as a user would type it; text that cannot be typed is quoted."""
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    text = str(value)
    return text if text.isprintable() and text == text.strip() else repr(text)


def table(rows: Iterable[tuple[str, str, str]]) -> str:
    """Aligned columns; a value of more than 40 characters pushes the next one to the right."""
    rows = list(rows)
    first = max((len(row[0]) for row in rows), default=0)
    second = min(max((len(row[1]) for row in rows), default=0), 40)
    return "\n".join(f"  {a:<{first}}  {b:<{second}}  {c}".rstrip() for a, b, c in rows)
