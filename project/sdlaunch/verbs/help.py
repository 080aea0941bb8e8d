"""`--help`: usage and every setting, from the schema; documents print the same rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from sdjob.exit_codes import LISTED
from sdjob.settings import presets
from sdjob.settings.fields import settings_of
from sdjob.settings.run_spec import RunSpec
from sdlaunch.settings import names
from sdlaunch.settings.options import LaunchOptions

_USAGE = """\
usage: bash train.sh [verb] [name=value ...]

verbs
{verbs}

Settings are given on the command line (--lr=1e-5 or lr=1e-5), in the environment (lr=1e-5 bash train.sh),
in an env file (ENV_FILE), or in a YAML file (CONFIG_FILE); the first of these that has a value wins.

exit codes
{codes}"""


@dataclass(frozen=True)
class Row:
    """A setting as users read about it."""

    group: str
    name: str
    meaning: str  # the help text with the unit
    default: str  # the default as users type it; "-" for none
    presets: str  # the defaults of some runs
    other_names: list[str]


def text(verbs: Iterable[tuple[str, str]]) -> str:
    """The whole help; `verbs`: (usage, what it does) of each."""
    usage = _USAGE.format(
        verbs="\n".join(f"  {name:<15}  {about}" for name, about in verbs),
        codes="\n".join(f"  {code:>3}  {meaning.text}" for code, meaning in LISTED.items()),
    )
    sections: dict[str, list[str]] = {}
    for row in rows():
        also = f"; also {', '.join(row.other_names)}" if row.other_names else ""
        line = f"  {row.name:<28} {row.meaning} [{row.default}{row.presets}{also}]"
        sections.setdefault(row.group, []).append(line)
    return "\n\n".join([usage, *(f"{group}\n" + "\n".join(lines) for group, lines in sections.items())])


def rows() -> list[Row]:
    """Every setting that users can set, in the order of the schema."""
    models: tuple[type[BaseModel], ...] = (LaunchOptions, RunSpec)
    return [
        Row(
            about.group,
            about.name or field,
            f"{about.help} ({about.unit})" if about.unit else about.help,
            _typed(model.model_fields[field].default),
            "".join(f"; {each.value:g} with {each.when}" for each in presets.PRESETS if each.field == field),
            names.other_names(model, field),
        )
        for model in models
        for field, about in settings_of(model).items()
        if not about.flag_only
    ]


def with_comments(text: str) -> str:
    """An env file with the help of every setting above its line. The head, up to the first empty line, stays."""
    head, _, body = text.partition("\n\n")
    lines = [line for line in body.splitlines() if line.strip() and not line.startswith("#")]
    return "\n\n".join([head, *(f"# {_help_of(line.partition('=')[0])}\n{line}" for line in lines)]) + "\n"


def _help_of(name: str) -> str:
    target = names.lookup(name)
    if target is None:
        return "passed on to the workers"
    row = next(row for row in rows() if row.name == target.shown)
    return f"{row.meaning} [{row.default}{row.presets}]"


def _typed(default: Any) -> str:
    """A default as users would type it."""
    if default is None or default == ():
        return "-"
    if isinstance(default, bool):
        return "1" if default else "0"
    return ",".join(default) if isinstance(default, tuple) else str(default)
