"""RunSpec ↔ the worker's flags. `parse(render(spec)) == spec` for every valid spec.

What the worker's flags and the launcher's sources have in common is here too: which of several names of a setting
wins, and how a wrong value is reported.
"""

from __future__ import annotations

import argparse
import re
import unicodedata
from argparse import SUPPRESS
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from typing import Any, NoReturn, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sdjob.problems import JobError, Problem, bad_setting
from sdjob.settings import diffusers_flags, presets, steps
from sdjob.settings.diffusers_flags import UNSUPPORTED
from sdjob.settings.fields import LONGEST, Target, fault_of, setting_of, targets
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


Text = str | tuple[str, ...]


@dataclass(frozen=True)
class Given:
    """One value as the user wrote it, and where."""

    name: str
    text: Text
    where: str
    quoted: bool = False  # in the source there are quotes around the text


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
    """The spec of these flags, with its presets; raises JobError with every problem found.

    Each setting has its names and aliases as flags; a flag that is given twice has its last value.
    """
    known = targets(RunSpec)
    given = [Given(name, text, f"--{name}") for name, text in _words(argv, known).items()]
    winners, problems = merged((known[each.name], each) for each in given if each.name in known)
    problems += diffusers_flags.problems(
        (each.name, str(each.text), each.where) for each in given if each.name in UNSUPPORTED
    )
    try:
        spec = validate({target.field: each.text for target, each in winners.values()})
    except JobError as error:
        problems += error.problems
    if problems:
        raise JobError(problems)
    return presets.completed(spec)[0]


def merged(
    given: Iterable[tuple[Target, Given]],
) -> tuple[dict[str, tuple[Target, Given]], list[Problem]]:
    """The value of each setting within one source, by its shown name; a problem where two differ."""
    by_setting: dict[str, list[tuple[Target, Given]]] = defaultdict(list)
    winners: dict[str, tuple[Target, Given]] = {}
    problems: list[Problem] = []
    for target, each in given:
        texts = each.text if isinstance(each.text, tuple) else (each.text,)
        if found := next(filter(None, map(fault_of, texts)), ""):
            remedy = f"Write text of at most {LONGEST:,} bytes."
            problems.append(bad_setting(target.shown, f"{found} ({each.where})", remedy))
        else:
            by_setting[target.shown].append((target, _translated(target, each)))
    for shown, candidates in by_setting.items():
        target, first = candidates[0]
        if target.is_list and len({each.name for _, each in candidates}) == 1:
            candidates = [(target, _joined([each for _, each in candidates]))]
        for _, other in candidates[1:]:
            if not _same(first.text, other.text):
                both = f"{first.text!r} ({first.where}) and {other.text!r} ({other.where})"
                problems.append(bad_setting(shown, both, f"Both set {shown}: keep one of them."))
        winners[shown] = candidates[0]
    return winners, problems


def _joined(given: Sequence[Given]) -> Given:
    """One value that lists all of these."""
    if len(given) == 1:
        return given[0]
    texts = (item.text if isinstance(item.text, tuple) else (item.text,) for item in given)
    return replace(given[0], text=tuple(chain.from_iterable(texts)))


def _translated(target: Target, given: Given) -> Given:
    return given if isinstance(given.text, tuple) else replace(given, text=target.alias.translate(given.text))


def _same(a: Text, b: Text) -> bool:
    if a == b:
        return True
    try:
        return float(str(a)) == float(str(b))
    except ValueError:
        return str(a).strip().lower() == str(b).strip().lower()


def validate(values: dict[str, Any]) -> RunSpec:
    """RunSpec from raw values by field name; raises JobError with one Problem per wrong value."""
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        raise JobError(problems_of(error)) from None


def problems_of(error: ValidationError, model: type[BaseModel] = RunSpec, prefix: str = "") -> list[Problem]:
    """One Problem per wrong field: the name that users type, after `prefix`; what was found; the allowed range."""
    found: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        field = str(detail["loc"][0]) if detail["loc"] else "settings"
        info = model.model_fields.get(field)
        shown = (setting_of(info).name or f"{prefix}{field}") if info else field
        value = "nothing" if detail["type"] == "missing" else repr(detail["input"])
        remedy = f"{_remedy(detail)}."
        if meant := _meant(info, detail["type"], str(detail["input"])):
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


def _meant(info: FieldInfo | None, fault: str, text: str) -> str | None:
    """The value that was probably meant: in ASCII, with the sign of its exponent, or the closest choice."""
    plain = unicodedata.normalize("NFKC", text)  # an input method may type full-width ones
    if plain != text and fault not in (
        "missing",
        "value_error",
    ):  # their inputs are all settings, and prompts
        return plain
    if fault == "less_than_equal" and re.fullmatch(r"[\d.]+e\d", text, re.ASCII):
        return text.replace("e", "e-")
    return _closest_choice(info, text) if fault == "literal_error" else None


def _closest_choice(info: FieldInfo | None, text: str) -> str | None:
    """The choice closest to a misspelled one, or the shortest that contains it."""
    kinds = (info.annotation, *get_args(info.annotation)) if info else ()  # a choice may be optional
    choices = [choice for kind in kinds for choice in get_args(kind) if isinstance(choice, str)]
    typed = text.lower()
    around = sorted((choice for choice in choices if len(typed) > 1 and typed in choice), key=len)
    return next(iter([*get_close_matches(typed, choices, n=1), *around]), None)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words(argv: Sequence[str], known: Mapping[str, Target]) -> dict[str, Text]:
    """The flags that are given → their values."""
    parser = _Parser(prog="python -m sdtrain", allow_abbrev=False, description="Fine-tune Stable Diffusion.")
    for name, target in known.items():
        _add_flag(parser, name, target)
    for name, flag in UNSUPPORTED.items():
        nargs: dict[str, Any] = {"nargs": "?", "const": "true"} if flag.is_switch else {"nargs": "+"}
        parser.add_argument(f"--{name}", help=SUPPRESS, **nargs)
    given = vars(parser.parse_args([_underscored(word) for word in argv]))
    return {name: _text_of(value) for name, value in given.items() if value is not None}


def _text_of(value: Any) -> Text:
    """A list of lists: a repeated flag of several values. A list: words of a flag that is not supported."""
    if isinstance(value, str):
        return value
    return " ".join(value) if isinstance(value[0], str) else tuple(chain.from_iterable(value))


def _underscored(word: str) -> str:
    """--name-of-a-flag=VALUE with underscores in the name."""
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word


def _add_flag(parser: argparse.ArgumentParser, name: str, target: Target) -> None:
    if target.field in _REPEATED:
        parser.add_argument(f"--{name}", action="append", nargs="+", help=_help(name, target), metavar="TEXT")
    elif target.is_switch:
        parser.add_argument(
            f"--{name}", nargs="?", const="true", help=_help(name, target), metavar="true|false"
        )
    else:
        parser.add_argument(f"--{name}", help=_help(name, target), metavar="VALUE")


def _help(name: str, target: Target) -> str:
    """Only the name of the field is described, with its aliases."""
    if name != target.field:
        return SUPPRESS
    info = target.model.model_fields[name]
    about = setting_of(info)
    unit = f" ({about.unit})" if about.unit else ""
    default = "" if info.is_required() or info.default in (None, ()) else f" [{_text(info.default)}]"
    others = [f"--{alias.name}" for alias in about.spellings(name) if alias.name != name]
    also = f"; also {', '.join(others)}" if others else ""
    return f"{about.help}{unit}{default}{also}".replace("%", "%%")


class _Parser(argparse.ArgumentParser):
    """argparse reports through `error`; here it raises a JobError with the documented exit code."""

    def error(self, message: str) -> NoReturn:
        raise JobError(bad_setting("command line", message, "See `python -m sdtrain --help` for the flags."))
