"""`--help`: usage and every setting, from the schema; documents print the same defaults."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from sdjob.problems import MEANINGS
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


def text(verbs: Iterable[tuple[str, str]]) -> str:
    """The whole help; `verbs`: (usage, what it does) of each."""
    usage = _USAGE.format(
        verbs="\n".join(f"  {name:<15}  {about}" for name, about in verbs),
        codes="\n".join(f"  {int(code):>2}  {meaning.text}" for code, meaning in MEANINGS.items()),
    )
    sections: dict[str, list[str]] = {}
    models: tuple[type[BaseModel], ...] = (LaunchOptions, RunSpec)
    for model in models:
        for field, about in settings_of(model).items():
            if not about.flag_only:
                sections.setdefault(about.group, []).append(_line(model, field))
    return "\n\n".join([usage, *(f"{group}\n" + "\n".join(lines) for group, lines in sections.items())])


def _line(model: type[BaseModel], field: str) -> str:
    about = settings_of(model)[field]
    first, others = about.name or field, names.other_names(model, field)
    unit = f" ({about.unit})" if about.unit else ""
    also = f"; also {', '.join(others)}" if others else ""
    return f"  {first:<28} {about.help}{unit} [{defaults_of(model, field)}{also}]"


def defaults_of(model: type[BaseModel], field: str) -> str:
    """A default, and the presets of some runs, as users would type them."""
    own = (f"; {each.value:g} with {each.when}" for each in presets.PRESETS if each.field == field)
    return default_of(model, field) + "".join(own)


def default_of(model: type[BaseModel], field: str) -> str:
    """A default as users would type it; "-" for none."""
    default: Any = model.model_fields[field].default
    if default is None or default == ():
        return "-"
    if isinstance(default, bool):
        return "1" if default else "0"
    return ",".join(default) if isinstance(default, tuple) else str(default)
