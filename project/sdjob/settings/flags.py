"""RunSpec ↔ the worker's flags. `parse(render(spec)) == spec` for every valid spec."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sdjob.problems import JobError, Problem, bad_setting
from sdjob.settings import presets, steps
from sdjob.settings.fields import setting_of
from sdjob.settings.run_spec import RunSpec

_REPEATED = ("validation_prompts",)  # one flag per value, since prompts may hold any character

_REMEDIES = {  # pydantic's type of the error, or its first word → remedy, with the limits of pydantic's context
    "missing": "Set it",
    "float": "Write a number, such as 1e-5",
    "finite_number": "Write a finite number",
    "int": "Write a whole number, such as 4",
    "bool": "Write 1 or 0",
    "literal_error": "Write one of {expected}",
    "greater_than": "Write a number above {gt}",
    "greater_than_equal": "Write at least {ge}",
    "less_than": "Write a number below {lt}",
    "less_than_equal": "Write at most {le}",
    "multiple_of": "Write a multiple of {multiple_of}",
    "string_pattern_mismatch": "Write it in the form that is described",
    "string_too_short": "Write a text, or leave it out",
    "string_type": "Write one text",
    "value_error": 'Write one text, or a JSON list such as ["one", "two"]',
}


def render(spec: RunSpec) -> tuple[str, ...]:
    """The flags of this spec: the core ones always, the others where they differ from their default.

    Every flag is one `--name=value`, so that a value may start with a dash or hold spaces.
    """
    argv: list[str] = []
    for name, info in RunSpec.model_fields.items():
        value = getattr(spec, name)
        if value is None or (value == info.default and not setting_of(info).core):
            continue
        if name == "max_train_steps" and steps.by_epochs(spec):
            continue  # the worker computes it: a default would look like a value that the user set
        if name in _REPEATED:
            argv += [f"--{name}={item}" for item in value]
        elif value is True:
            argv.append(f"--{name}")
        else:
            argv.append(f"--{name}={_text(value)}")
    return tuple(argv)


def parse(argv: Sequence[str]) -> RunSpec:
    """The spec of these flags, with its presets; raises JobError with every problem found."""
    parser = _Parser(prog="python -m sdtrain", allow_abbrev=False, description="Fine-tune Stable Diffusion.")
    for name, info in RunSpec.model_fields.items():
        _add_flag(parser, name, info)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    return presets.completed(validate(given))[0]


def validate(values: dict[str, Any]) -> RunSpec:
    """RunSpec from raw values by field name; raises JobError with one Problem per wrong value."""
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        raise JobError(problems_of(error)) from None


def problems_of(error: ValidationError, model: type[BaseModel] = RunSpec) -> list[Problem]:
    """One Problem per wrong field: the name that users type, what was found, the allowed range."""
    found: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        field = str(detail["loc"][0]) if detail["loc"] else "settings"
        info = model.model_fields.get(field)
        shown = (setting_of(info).name or field) if info else field
        value = "nothing" if detail["type"] == "missing" else repr(detail["input"])
        remedy = f"{_remedy(detail)}."
        if detail["type"] == "literal_error" and (meant := _meant(info, detail["input"])):
            remedy = f"Did you mean {meant}? {remedy}"
        if info:
            remedy += f" {shown}: {setting_of(info).help}."
        found.setdefault(field, bad_setting(shown, f"found {value}", remedy))
    return list(found.values())


def _remedy(detail: ErrorDetails) -> str:
    """What to write, by the type of the error; otherwise the message of the validator."""
    limits = {name: str(limit) for name, limit in detail.get("ctx", {}).items()}
    limits["expected"] = limits.get("expected", "").replace("'", "").replace(" or ", ", ")
    words = _REMEDIES.get(detail["type"]) or _REMEDIES.get(detail["type"].partition("_")[0])
    return words.format(**limits) if words else detail["msg"].replace("Input should", "It should")


def _meant(info: FieldInfo | None, value: Any) -> str | None:
    """The allowed value closest to a misspelled one, or the shortest that contains it."""
    choices = [choice for choice in get_args(info.annotation) if isinstance(choice, str)] if info else []
    typed = str(value).lower()
    around = sorted((choice for choice in choices if len(typed) > 1 and typed in choice), key=len)
    return next(iter([*get_close_matches(typed, choices, n=1), *around]), None)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _add_flag(parser: argparse.ArgumentParser, name: str, info: FieldInfo) -> None:
    about = setting_of(info)
    unit = f" ({about.unit})" if about.unit else ""
    default = "" if info.is_required() or info.default in (None, ()) else f" [{_text(info.default)}]"
    text = f"{about.help}{unit}{default}".replace("%", "%%")
    if name in _REPEATED:
        parser.add_argument(f"--{name}", action="append", help=text, metavar="TEXT")
    elif isinstance(info.default, bool):
        parser.add_argument(f"--{name}", nargs="?", const="true", help=text, metavar="true|false")
    else:
        parser.add_argument(f"--{name}", help=text, metavar="VALUE")


class _Parser(argparse.ArgumentParser):
    """argparse reports through `error`; here it raises a JobError with the documented exit code."""

    def error(self, message: str) -> NoReturn:
        raise JobError(bad_setting("command line", message, "See `python -m sdtrain --help` for the flags."))
