"""From the flags of another trainer to the lines of an env file: every flag becomes a setting, a remark, or both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sdjob.formatting import as_typed
from sdjob.redact import is_secret
from sdjob.settings.fields import Target
from sdlaunch.convert.lines import DEFAULT, Flag, Line, whole
from sdlaunch.convert.scripts import Script
from sdlaunch.convert.trainers import TRAINERS
from sdlaunch.settings import names, other_variables, settings

_IN_FP16 = (
    "torch_ddp_fp16",
    "low_level_zero",
    "gemini",
)  # what their scripts compute in, unless they are told
_NO_DECAY = ("prodigy", "adafactor")  # unless their arguments say so
_NOT_KNOWN = "Not a flag of this script that is known: look for a setting of the same meaning."


@dataclass(frozen=True)
class Source:
    """What is converted: a script with its flags, and what is known of how it was started."""

    title: str  # of the script or the file
    script: Script
    flags: tuple[Flag, ...]
    started: tuple[Line, ...] = ()  # settings of the launcher
    variables: tuple[tuple[str, str], ...] = ()  # of the environment
    remarks: tuple[Line, ...] = ()


def lines_of(source: Source) -> tuple[Line, ...]:
    """One setting at most of each name, in the order of the flags; then remarks."""
    lines = [Line(source.title, "recipe", source.script.recipe)]
    last = {flag.name: flag for flag in source.flags}
    for flag in source.flags:
        if flag is last[flag.name]:
            lines += lines_of_flag(flag, source.script.trainer)
        else:
            lines.append(Line(str(flag), remark="Given again below, which takes precedence."))
    lines = [*lines, *source.started, *_variables(source.variables)]
    lines += _defaults(source, {line.name: line.value for line in lines if line.name})
    lines = _scaled(_each_once(lines), source.flags)
    return tuple(_checked([*lines, *source.remarks]))


def lines_of_flag(flag: Flag, trainer: str) -> Iterable[Line]:
    """What becomes of one flag, whatever the others are."""
    known = TRAINERS[trainer]
    if flag.key and not flag.text.strip():  # programs that write such files fill in every key
        yield Line(str(flag), remark=DEFAULT)
    elif rule := known.rules.get(flag.name):
        yield from rule(flag)
    elif flag.name in known.renamed:
        yield Line(str(flag), known.renamed[flag.name], flag.as_switch)
    elif target := names.lookup(flag.name, any_case=True):
        if not (flag.values or target.is_switch or flag.as_switch in target.alias.values):
            yield Line(str(flag), remark="Has no value.", lost=True)
            return
        yield Line(str(flag), target.shown, _value(flag, target))
    elif unsupported := known.unsupported.get(flag.name):
        if flag.as_switch.strip().lower() in unsupported.accepted:
            yield Line(str(flag), remark=DEFAULT)
        else:
            yield Line(str(flag), remark=unsupported.remedy, lost=not unsupported.keeps_result)
    else:
        yield Line(str(flag), remark=_NOT_KNOWN, lost=True)


def _value(flag: Flag, target: Target) -> str:
    """A value as our setting takes it: under its own name, aliases may spell it in another way."""
    if target.is_list and len(flag.values) > 1:
        return as_typed(flag.values)
    return target.alias.translate(flag.as_switch)


def _variables(variables: Iterable[tuple[str, str]]) -> Iterable[Line]:
    """Variables of libraries go on to the workers; others may be anything."""
    for name, value in variables:
        shown = str(Flag(name, (value,), key=True))
        if other_variables.is_foreign(name) and not is_secret(name):
            yield Line(shown, name, value)
        else:
            yield Line(
                shown, remark="A variable that the command does not use: set it where the job needs it."
            )


def _defaults(source: Source, given: Mapping[str, str]) -> Iterable[Line]:
    """Defaults of the script that differ from ours, where no flag has set them."""
    by_file = "accelerate_config" in given
    has_no_decay = given.get("optimizer", "adamw").lower() in _NO_DECAY
    for name, value in source.script.defaults.items():
        covered = name in given
        covered |= name in ("epoch", "num_train_step") and bool({"epoch", "num_train_step"} & {*given})
        covered |= name == "lr_warmup_steps" and given.get("lr_scheduler", "constant") == "constant"
        covered |= name == "mixed_precision" and by_file
        covered |= name == "adam_weight_decay" and source.script.trainer == "kohya" and not has_no_decay
        if not covered:
            in_fp16 = name == "mixed_precision" and given.get("plugin") in _IN_FP16
            yield Line(f"default of {source.title}", name, "fp16" if in_fp16 else value)


def _each_once(lines: Iterable[Line]) -> list[Line]:
    """Of several values of one setting the first: the script's own flags come before the launcher's."""
    kept: dict[str, Line] = {}
    others: list[Line] = []
    for line in lines:
        earlier = kept.get(line.name)
        if not line.name:
            others.append(line)
        elif earlier is None:
            kept[line.name] = line
        elif earlier.value != line.value:
            text = f"{earlier.origin} takes precedence."
            others.append(Line(line.origin, remark=text))
        elif line.origin != earlier.origin and line.origin not in earlier.origin.split(", "):
            kept[line.name] = replace(earlier, origin=f"{earlier.origin}, {line.origin}")
    return [*kept.values(), *others]


def _scaled(lines: Sequence[Line], flags: Iterable[Flag]) -> list[Line]:
    """`--scale_lr`: the learning rate, multiplied as the scripts do."""
    flag = next((each for each in flags if each.name == "scale_lr" and not each.is_off), None)
    if flag is None:
        return [*lines]
    found = {line.name: line.value for line in lines}
    texts = [found.get(name, "1") for name in ("gradient_accumulation_steps", "batch_size")]
    texts += [found.get("NPROC_PER_NODE", "auto"), found.get("NNODES", "1")]
    factors = [factor for factor in map(whole, texts) if factor is not None]
    if len(factors) < len(texts) or not _is_number(found.get("lr", "1")):
        text = "Multiply lr by gradient_accumulation_steps × batch_size × processes; the plan shows them."
        return [*lines, Line(str(flag), remark=text, lost=True)]
    product = math.prod(factors)
    return [
        replace(line, value=f"{float(line.value) * product:g}", origin=f"{line.origin} × {product} ({flag})")
        if line.name == "lr"
        else line
        for line in lines
    ]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _checked(lines: Sequence[Line]) -> Iterable[Line]:
    """Settings that are refused become remarks with the reason."""
    given = [(line.name, line.value) for line in lines if line.name and names.lookup(line.name)]
    refused = {problem.subject: problem for problem in settings.read(given, {}).problems}
    for line in lines:
        problem = refused.get(line.name) if line.name else None
        if problem is None:
            yield line
        else:
            found = problem.found.partition(" (command line")[0]
            text = f"{problem.subject}: {found}. {problem.remedy}"
            yield Line(line.origin, remark=text, lost=True)
