"""The launcher's command line: an optional verb, settings as flags, and the help made from the schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from sdjob.problems import Problem, bad_setting
from sdjob.settings import presets
from sdjob.settings.fields import settings_of
from sdjob.settings.run_spec import RunSpec
from sdlaunch.emit import task
from sdlaunch.settings import names
from sdlaunch.settings.options import LaunchOptions

VERBS = ("run", "plan", "check", "emit", "doctor")
USAGE = """\
usage: bash train.sh [verb] [name=value ...]

verbs
  (none)         check everything, then train
  plan [--json]  show every setting with its source, the mounts, the command and the problems
  check [--json] show the problems only
  emit TARGET    print the same job for docker, compose, kubernetes [--kind=trainjob|job], slurm or skypilot
  doctor [--json]  what this machine and its packages can do: versions, devices, kernels; needs no mounts
  --dry-run      the same as plan
  --help         this text

Settings are given on the command line (--lr=1e-5 or lr=1e-5), in the environment (lr=1e-5 bash train.sh),
in an env file (ENV_FILE), or in a YAML file (CONFIG_FILE); the first of these that has a value wins.

exit codes: 0 finished, 64 wrong setting, 66 wrong mount, model or data, 69 hardware does not fit,
  70 training failed, 71 out of memory, 73 output folder cannot hold the result, 75 stopped and resumable"""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    verb: str
    json: bool
    flags: tuple[tuple[str, str], ...]
    target: str = ""  # of emit
    kind: str = task.KINDS[0]
    problems: tuple[Problem, ...] = ()  # what could not be understood

    @property
    def assigns_ranks(self) -> bool:
        """Whether the job is for a platform that numbers its nodes."""
        return self.target in task.ASSIGNS_RANKS


def parse(argv: Sequence[str]) -> Request:
    """Every word of the command line, understood or reported."""
    verbs: list[str] = []
    flags: list[tuple[str, str]] = []
    as_json = False
    problems: list[Problem] = []
    target, kind = "", task.KINDS[0]
    words = iter(argv)
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if word == "emit":
            verbs.append(word)
            target = next(words, "")
        elif name == "kind" and equals and "emit" in argv:
            kind = value
        elif word in VERBS:
            verbs.append(word)
        elif word == "--dry-run":
            verbs.append("plan")
        elif word in ("-h", "--help"):
            verbs.append("help")
        elif word == "--json":
            as_json = True
        elif equals and name:
            flags.append((name, value))
        elif word.startswith("--") and name:
            problems += _flag_without_equals(name, words, flags)
        else:
            problems.append(_not_understood(word))
    if len(set(verbs)) > 1 and "help" not in verbs:
        problems.append(bad_setting("command line", f"{' and '.join(verbs)}", "Ask for one thing at a time."))
    verb = "help" if "help" in verbs else (verbs or ["run"])[0]
    if as_json and verb == "run":
        problems.append(bad_setting("--json", "without plan or check", "Write plan --json or check --json."))
    if verb == "emit":
        problems += _emit_problems(target, kind)
    if verb == "doctor" and flags:
        found = f"doctor with {', '.join(name for name, _ in flags)}"
        problems.append(
            bad_setting("command line", found, "It looks at the machine, not at a job: leave that out.")
        )
    return Request(verb, as_json, tuple(flags), target, kind, tuple(problems))


def _emit_problems(target: str, kind: str) -> list[Problem]:
    wrong = []
    if target not in task.TARGETS:
        wrong.append(
            bad_setting("emit", f"target {target!r}", f"Write emit and one of {', '.join(task.TARGETS)}.")
        )
    if kind not in task.KINDS:
        wrong.append(bad_setting("--kind", f"found {kind!r}", f"Use one of {', '.join(task.KINDS)}."))
    return wrong


def _flag_without_equals(name: str, words: Iterator[str], flags: list[tuple[str, str]]) -> list[Problem]:
    """--use_ema is a switch; every other flag takes the next word as its value."""
    target = names.lookup(name, any_case=True)
    if target is None:
        return [_not_understood(f"--{name}")]
    if target.model.model_fields[target.field].annotation is bool:
        flags.append((name, "true"))
    else:
        value = next(words, None)
        if value is None:
            return [bad_setting(name, "no value", f"Write --{name}=VALUE.")]
        flags.append((name, value))
    return []


def _not_understood(word: str) -> Problem:
    meant = names.near_miss(word.strip("-").partition("=")[0])
    remedy = f"Write {meant}=VALUE." if meant else f"Verbs are {', '.join(VERBS)}; settings are name=value."
    return bad_setting("command line", f"{word!r} is neither a verb nor a setting", remedy)


def help_text() -> str:
    """Usage and every setting, from the schema."""
    sections: dict[str, list[str]] = {}
    models: tuple[type[BaseModel], ...] = (LaunchOptions, RunSpec)
    for model in models:
        for field, about in settings_of(model).items():
            if not about.flag_only:
                sections.setdefault(about.group, []).append(_help_line(model, field))
    return "\n\n".join([USAGE, *(f"{group}\n" + "\n".join(lines) for group, lines in sections.items())])


def _help_line(model: type[BaseModel], field: str) -> str:
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
