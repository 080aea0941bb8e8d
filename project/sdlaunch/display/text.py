"""Plans and problems as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import indent
from typing import Any

from sdjob.exit_codes import meaning_of
from sdjob.formatting import as_json, as_typed, counted, visible
from sdjob.problems import Problem, exit_code
from sdjob.redact import redact
from sdlaunch.plan import JobPlan


def check(job: JobPlan) -> str:
    """The warnings and problems of a job, or that there are none."""
    found = problems(job.problems) if job.problems else "no problems: the job can start"
    network = (f"  {line}" for line in job.network)
    return visible(redact("\n".join([*network, *_warnings(job), found]), job.secrets))


def check_json(job: JobPlan) -> str:
    """The problems of a job, for programs."""
    return redact(as_json({"problems": [problem.to_dict() for problem in job.problems]}), job.secrets)


def start(job: JobPlan) -> str:
    """The lines printed before training: inputs, arithmetic, warnings."""
    warnings = (f"warning: {warning}" for warning in job.warnings)
    return visible(redact("\n".join([*inputs(job), *job.arithmetic, *job.network, *warnings]), job.secrets))


def inputs(job: JobPlan) -> list[str]:
    """Each mount with what the job uses of it."""
    return [
        f"{name.removesuffix('_DIR').lower()}: {about['uses']} ({about['found']})"
        for name, about in job.mounts.items()
    ]


def plan(job: JobPlan, *, dim: bool = False) -> str:
    """The whole plan, the most important part last, nearest to the prompt: defaults, settings that follow from others,
    settings that the user made, and what results."""
    unset = {name: each for name, each in job.settings.items() if each.source == "default"}
    others = [name for name in job.settings if name not in unset]
    settings = sorted(others, key=lambda name: name in job.given)
    defaults = table((name, _value(each.value), "") for name, each in unset.items())
    if dim:
        defaults = f"\033[2m{defaults}\033[22m"  # the faint type of terminals (ECMA-48)
    rows = ((name, job.settings[name]) for name in settings)
    sections = [
        ("Settings at their default", defaults),
        ("Settings", table((name, _value(each.value), each.source) for name, each in rows)),
        ("Mounts", table((name, about["uses"], about["found"]) for name, about in job.mounts.items())),
        ("Arithmetic", "\n".join(f"  {line}" for line in (*job.arithmetic, *job.network))),
        ("Command", job.launch.shell() if job.launch else "  none, because a setting was refused"),
        ("Warnings", "\n".join(_warnings(job))),
        ("Problems", problems(job.problems) if job.problems else "  none: the job can start"),
    ]
    text = "\n\n".join(f"{title}\n{body}" for title, body in sections if body)
    return visible(redact(text, job.secrets), colors=dim)


def plan_json(job: JobPlan) -> str:
    """The whole plan, for programs."""
    return redact(as_json(job.to_dict()), job.secrets)


def problems(found: Sequence[Problem]) -> str:
    """Every problem as what – found – remedy, and the exit code that results."""
    lines = [indent(str(problem), "  ") for problem in sorted(found)]
    code = exit_code(found)
    return "\n".join(
        [*lines, f"{counted(len(found), 'problem')}; exit code {code} ({meaning_of(code).text})."]
    )


def _warnings(job: JobPlan) -> list[str]:
    return [f"  warning: {warning}" for warning in job.warnings]


def _value(value: Any) -> str:
    """A value on one line, as a user would type it; text that cannot be typed is quoted."""
    text = "-" if value is None or value == [] else as_typed(value)
    return text if text.isprintable() and text == text.strip() else repr(text)


def table(rows: Iterable[tuple[str, str, str]]) -> str:
    """Aligned columns; a value of more than 40 characters pushes the next one to the right."""
    rows = list(rows)
    first = max((len(row[0]) for row in rows), default=0)
    second = min(max((len(row[1]) for row in rows), default=0), 40)
    return "\n".join(f"  {a:<{first}}  {b:<{second}}  {c}".rstrip() for a, b, c in rows)
