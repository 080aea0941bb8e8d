"""Validated settings from the texts of all sources, each with the source that won."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sdjob.problems import Problem, bad_setting
from sdjob.settings import presets
from sdjob.settings.fields import settings_of
from sdjob.settings.flags import problems_of
from sdjob.settings.run_spec import RunSpec
from sdlaunch.settings import names, sources
from sdlaunch.settings.names import Target
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.settings.sources import Given, Text

Model = TypeVar("Model", bound=BaseModel)

# The launcher fills these in from the mounts; until then a spec needs some value.
_FROM_MOUNTS = {"pretrained_model_name_or_path": "?", "output_dir": "?"}


@dataclass(frozen=True)
class Settings:
    """All settings of a job. Refused values are at their defaults, and in `problems`."""

    spec: RunSpec
    options: LaunchOptions
    given: Mapping[str, Given]  # by the name that the plan shows
    passed_on: Mapping[str, str]  # variables of the env file that are not settings: for the workers
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    presets: Mapping[str, str]  # by the same name: why the value is the preset

    def source(self, shown: str) -> str:
        if shown in self.given:
            return self.given[shown].where
        return f"preset: {self.presets[shown]}" if shown in self.presets else "default"


@dataclass
class _Found:
    """What the sources read so far have given."""

    winners: dict[str, tuple[Target, Given]]
    problems: list[Problem]
    doubts: list[Problem]  # problems, or only warnings with strict_env=0
    warnings: list[str]
    passed_on: dict[str, str]


def read(flags: Sequence[tuple[str, str]], environ: Mapping[str, str]) -> Settings:
    """Reads every source, strongest first: command line, environment, env file, YAML file, preset, default."""
    found = _Found({}, [], [], [], {})
    _take(found, sources.from_command_line(flags), _unknown_flag, any_case=True)
    _take(found, sources.from_environment(environ), _unknown_variable)
    if path := _path(found, "ENV_FILE"):
        reading = sources.from_env_file(path)
        found.problems += reading.problems
        found.doubts += sources.misread_values(path, reading.given) if reading.given else []
        _take(found, reading.given, _unknown_in_env_file)
    if path := _path(found, "CONFIG_FILE"):
        reading = sources.from_yaml(path)
        found.problems += reading.problems
        _take(found, reading.given, _unknown_in_yaml, any_case=True)
    options, wrong_options = _validated(LaunchOptions, found.winners, {})
    spec, wrong_settings = _validated(RunSpec, found.winners, _FROM_MOUNTS)
    spec, preset = presets.completed(spec)
    shown = shown_names(RunSpec)
    problems = [*found.problems, *wrong_options, *wrong_settings]
    if options.strict_env:
        problems += found.doubts
    else:
        found.warnings += [f"{doubt.subject}: {doubt.found}" for doubt in found.doubts]
    return Settings(
        spec,
        options,
        {name: given for name, (_, given) in found.winners.items()},
        found.passed_on,
        tuple(sorted(set(problems))),
        tuple(found.warnings),
        {shown[field]: when for field, when in preset.items()},
    )


def _path(found: _Found, shown: str) -> str | None:
    winner = found.winners.get(shown)
    return str(winner[1].text) if winner else None


def _take(
    found: _Found,
    layer: Iterable[Given],
    unknown: Callable[[_Found, Given], object],
    *,
    any_case: bool = False,
) -> None:
    """Add one source: record its conflicts and unknown names; its values win where no stronger source has one."""
    by_setting: dict[str, list[tuple[Target, Given]]] = defaultdict(list)
    for given in layer:
        target = names.lookup(given.name, any_case=any_case)
        if target and given.text:  # an empty value counts as unset
            by_setting[target.shown].append((target, _translated(target, given)))
        elif not target:
            unknown(found, given)
    for shown, candidates in by_setting.items():
        if _is_list(candidates[0][0]) and len({given.name for _, given in candidates}) == 1:
            candidates = [(candidates[0][0], _joined([given for _, given in candidates]))]
        for _, other in candidates[1:]:
            first = candidates[0][1]
            if not _same(first.text, other.text):
                found.problems.append(_conflict(shown, first, other))
        found.winners.setdefault(shown, candidates[0])


def _is_list(target: Target) -> bool:
    """Whether a setting holds several values, so that repeating it appends one."""
    return isinstance(target.model.model_fields[target.field].default, tuple)


def _joined(given: Sequence[Given]) -> Given:
    if len(given) == 1:
        return given[0]
    texts = (item.text if isinstance(item.text, tuple) else (item.text,) for item in given)
    return replace(given[0], text=tuple(text for several in texts for text in several))


def _translated(target: Target, given: Given) -> Given:
    return given if isinstance(given.text, tuple) else replace(given, text=target.alias.translate(given.text))


def _same(a: Text, b: Text) -> bool:
    if a == b:
        return True
    try:
        return float(str(a)) == float(str(b))
    except ValueError:
        return str(a).strip().lower() == str(b).strip().lower()


def _conflict(shown: str, first: Given, other: Given) -> Problem:
    return bad_setting(
        shown,
        f"{first.text!r} ({first.where}) and {other.text!r} ({other.where})",
        f"Both set {shown}: keep one of them.",
    )


def _unknown_flag(found: _Found, given: Given) -> None:
    found.problems.append(_unknown(given, "See `bash train.sh --help` for the settings."))


def _unknown_in_yaml(found: _Found, given: Given) -> None:
    found.problems.append(_unknown(given, "Remove it, or see `bash train.sh --help` for the settings."))


def _unknown(given: Given, otherwise: str) -> Problem:
    meant = names.mount_of(given.name) or names.near_miss(given.name)
    return bad_setting(
        given.name, f"unknown setting ({given.where})", f"Write {meant}." if meant else otherwise
    )


def _unknown_in_env_file(found: _Found, given: Given) -> None:
    """Pass variables for libraries (NCCL_DEBUG, …) on to the workers: they belong in such files too."""
    if mount := names.mount_of(given.name):
        remedy = f"Write {mount}: {given.name} is a flag of the worker, which is set from it."
        found.problems.append(bad_setting(given.name, f"unknown setting ({given.where})", remedy))
        return
    if not names.is_foreign(given.name) and _is_doubtful(found, given):
        return
    found.passed_on[given.name] = str(given.text)
    if not names.is_foreign(given.name):
        found.warnings.append(
            f"{given.name} ({given.where}) is not a setting; it is passed on to the workers"
        )


def _unknown_variable(found: _Found, given: Given) -> None:
    """A variable of the environment may be meant for another program, such as `rank` or `output_dir`."""
    if mount := names.mount_of(given.name):
        found.warnings.append(f"{given.name} ({given.where}) is never read from there: set {mount}")
    elif not names.is_foreign(given.name.upper()):
        _is_doubtful(found, given)


def _is_doubtful(found: _Found, given: Given) -> bool:
    """Record a name that looks like a misspelled setting; return whether it does."""
    meant = names.near_miss(given.name)
    if meant:
        found.doubts.append(
            bad_setting(
                given.name,
                f"unknown name, probably {meant} ({given.where})",
                f"Write {meant}; or set strict_env=0 if {given.name} is meant for something else.",
            )
        )
    return meant is not None


def _validated(
    model: type[Model], winners: Mapping[str, tuple[Target, Given]], known: Mapping[str, Any]
) -> tuple[Model, list[Problem]]:
    """The model from these values; refused ones stay at their defaults and are returned as problems."""
    values = {t.field: given.text for t, given in winners.values() if t.model is model} | dict(known)
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        refused = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
        problems = [_with_source(problem, winners) for problem in problems_of(error, model)]
    accepted = {field: value for field, value in values.items() if field not in refused}
    return model.model_validate(accepted), problems


def _with_source(problem: Problem, winners: Mapping[str, tuple[Target, Given]]) -> Problem:
    winner = winners.get(problem.subject)
    return replace(problem, found=f"{problem.found} ({winner[1].where})") if winner else problem


def shown_names(model: type[BaseModel]) -> dict[str, str]:
    """Field → the name that the plan shows."""
    return {field: about.name or field for field, about in settings_of(model).items()}
