"""Validated settings from the texts of all sources, each with the source that won."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sdjob.problems import Problem, bad_setting
from sdjob.redact import HIDDEN
from sdjob.settings import diffusers_flags, presets
from sdjob.settings.diffusers_flags import UNSUPPORTED
from sdjob.settings.fields import Target, settings_of
from sdjob.settings.flags import Given, merged, problems_of
from sdjob.settings.run_spec import RunSpec
from sdlaunch.settings import names, other_variables, sources
from sdlaunch.settings.options import LaunchOptions

Model = TypeVar("Model", bound=BaseModel)

# The launcher fills these in from the mounts; until then a spec needs some value.
_FROM_MOUNTS = {"pretrained_model_name_or_path": "?", "output_dir": "?"}
# Kubernetes sets MASTER_PORT=tcp://… where a service is called master.
_SERVICE_LINK = (
    "Set {} to a port number, and enableServiceLinks: false in the pod: "
    "Kubernetes makes such variables from the names of services."
)

_SHORT = 60.0  # seconds


@dataclass(frozen=True)
class Settings:
    """All settings of a job. Refused values are at their defaults, and in `problems`."""

    spec: RunSpec
    options: LaunchOptions
    given: Mapping[str, Given]  # settings that the user made, by the name that the plan shows
    passed_on: Mapping[str, str]  # variables of the env file that are not settings: for the workers
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    presets: Mapping[str, str]  # the reason of each preset, by the same name

    def source(self, shown: str) -> str:
        if shown in self.given:
            return self.given[shown].where
        return f"preset: {self.presets[shown]}" if shown in self.presets else "default"


@dataclass
class _Found:
    """What the sources read so far have given."""

    winners: dict[str, tuple[Target, Given]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    doubts: list[Problem] = field(default_factory=list)  # problems, or only warnings with strict_env=0
    warnings: list[str] = field(default_factory=list)
    passed_on: dict[str, str] = field(default_factory=dict)


def read(flags: Sequence[tuple[str, str]], environ: Mapping[str, str]) -> Settings:
    """Reads every source, strongest first: command line, environment, env file, YAML file, preset, default."""
    found = _Found()
    _take(found, sources.from_command_line(flags), _unknown, any_case=True)
    _take(found, sources.from_environment(environ), _unknown_variable)
    if "ENV_FILE" in found.winners:
        path = str(found.winners["ENV_FILE"][1].text)
        given, problems, misread = sources.from_env_file(path)
        found.problems += problems
        found.doubts += misread
        _take(found, given, _unknown_in_env_file)
    if "CONFIG_FILE" in found.winners:
        given, problems = sources.from_yaml(str(found.winners["CONFIG_FILE"][1].text))
        found.problems += problems
        _take(found, given, _unknown, any_case=True)
    winners = found.winners.items()
    found.problems += [_hidden(shown, given) for shown, (_, given) in winners if HIDDEN in str(given.text)]
    options = _validated(LaunchOptions, found, {})
    spec, preset = presets.completed(_validated(RunSpec, found, _FROM_MOUNTS))
    if options.strict_env:
        found.problems += found.doubts
    else:
        found.warnings += [f"{doubt.subject}: {doubt.found}" for doubt in found.doubts]
    if 0 < options.hang_timeout < _SHORT:
        found.warnings.append(
            f"hang_timeout: {options.hang_timeout:g} s is less than a slow step, a checkpoint or the import of PyTorch "
            f"may take; at least {_SHORT:g} is advised"
        )
    found.warnings += [
        f"{given.name}: read without the quotes around it, as {given.text!r} ({given.where})"
        for _, given in found.winners.values()
        if given.quoted
    ]
    shown = shown_names(RunSpec)
    return Settings(
        spec,
        options,
        {name: given for name, (_, given) in found.winners.items()},
        found.passed_on,
        tuple(sorted(set(found.problems))),
        tuple(found.warnings),
        {shown[name]: when for name, when in preset.items()},
    )


def _take(
    found: _Found,
    layer: Iterable[Given],
    unknown: Callable[[_Found, Given], object],
    *,
    any_case: bool = False,
) -> None:
    """Add one source: record its conflicts and unknown names; its values win where no stronger source has one."""
    known: list[tuple[Target, Given]] = []
    for given in layer:
        target = names.lookup(given.name, any_case=any_case)
        if target and given.text:  # an empty value counts as unset
            known.append((target, given))
        elif not target:
            unknown(found, given)
    winners, problems = merged(known)
    found.problems += problems
    for shown, winner in winners.items():
        found.winners.setdefault(shown, winner)


def _unknown(found: _Found, given: Given) -> None:
    """A name of the command line or the YAML file, which hold nothing but settings."""
    if (name := given.name.lower()) in UNSUPPORTED:
        found.problems += diffusers_flags.problems([(name, str(given.text), given.where)])
        return
    meant = names.mount_of(given.name) or names.near_miss(given.name)
    remedy = f"Write {meant}." if meant else "Remove it, or see `bash train.sh --help` for the settings."
    found.problems.append(bad_setting(given.name, f"unknown setting ({given.where})", remedy))


def _unknown_in_env_file(found: _Found, given: Given) -> None:
    """Pass variables for libraries (NCCL_DEBUG, …) on to the workers: they belong in such files too."""
    is_foreign = other_variables.is_foreign(given.name)
    if mount := names.mount_of(given.name):
        remedy = f"Write {mount}: {given.name} is a flag of the worker, which is set from it."
        found.problems.append(bad_setting(given.name, f"unknown setting ({given.where})", remedy))
    elif _is_for_others(found, given, is_foreign=is_foreign):
        found.passed_on[given.name] = str(given.text)
        if not is_foreign:
            warning = f"{given.name} ({given.where}) is not a setting; it is passed on to the workers"
            found.warnings.append(warning)


def _unknown_variable(found: _Found, given: Given) -> None:
    """A variable of the environment may be meant for another program, such as `rank` or `output_dir`."""
    if mount := names.mount_of(given.name):
        found.warnings.append(f"{given.name} ({given.where}) is never read from there: set {mount}")
    else:
        _is_for_others(found, given, is_foreign=other_variables.is_foreign(given.name.upper()))


def _is_for_others(found: _Found, given: Given, *, is_foreign: bool) -> bool:
    """Whether a name is neither a flag of other trainers nor a misspelled setting, which are recorded as doubts."""
    name, where = given.name, given.where
    if name in UNSUPPORTED and UNSUPPORTED[name].in_environment:
        found.doubts += diffusers_flags.problems([(name, str(given.text), where)])
        return False
    meant = None if is_foreign else names.near_miss(name)
    if meant:
        remedy = f"Write {meant}; or set strict_env=0 if {name} is meant for something else."
        found.doubts.append(bad_setting(name, f"unknown name, probably {meant} ({where})", remedy))
    return not meant


def _hidden(shown: str, given: Given) -> Problem:
    """What was written down without its secrets cannot be read back."""
    found = f"{HIDDEN} stands in place of a secret ({given.where})"
    remedy = "Give the whole value again; better give the secret as a variable, which the script reads."
    return bad_setting(shown, found, remedy)


def _validated(model: type[Model], found: _Found, known: Mapping[str, Any]) -> Model:
    """The model from the values found; refused ones stay at their defaults, and a problem says so."""
    values = {t.field: given.text for t, given in found.winners.values() if t.model is model} | dict(known)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        refused = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
        for problem in problems_of(error, model):
            if winner := found.winners.get(problem.subject):
                problem = replace(problem, found=f"{problem.found} ({winner[1].where})")
                if str(winner[1].text).startswith("tcp://"):
                    problem = replace(problem, remedy=_SERVICE_LINK.format(problem.subject))
            found.problems.append(problem)
    return model.model_validate({name: value for name, value in values.items() if name not in refused})


def shown_names(model: type[BaseModel]) -> dict[str, str]:
    """Field → the name that the plan shows."""
    return {name: about.name or name for name, about in settings_of(model).items()}
