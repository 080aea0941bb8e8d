"""The lines as an env file, each setting below what it comes from."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from sdjob.formatting import counted, visible
from sdjob.redact import redact
from sdlaunch.convert.lines import Line
from sdlaunch.settings.sources import with_short_blanks

_FIRST = ("recipe", "model_name", "dataset_name", "DATASET_DIR", "OUTPUT_DIR", "offline")
_UNWRITABLE = (
    "An env file cannot hold this value: give it in a YAML file (CONFIG_FILE) or on the command line."
)

# Line ends, commands of terminals, and directions of writing, by which a value shows as something else.
_OBEYED = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_EMPTY = "it has no value."


def settle(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Lines whose value an env file cannot hold become remarks; secrets are hidden as in an emitted job."""
    return tuple(
        Line(line.origin, remark=f"{line.name}: {_UNWRITABLE if line.value else _EMPTY}", lost=True)
        if line.name and not _can_hold(line.name, line.value)
        else replace(line, value=redact(line.value, ()))
        for line in lines
    )


def in_order(lines: Iterable[Line]) -> list[Line]:
    """Settings with those first that say what a job is about."""
    return sorted(lines, key=lambda line: _FIRST.index(line.name) if line.name in _FIRST else len(_FIRST))


def render(title: str, lines: Sequence[Line]) -> str:
    """The whole file: a head, the settings, what has no equivalent, notes."""
    parts = [f"# Converted from {_comment(title)}. Check it: bash train.sh plan --env-file FILE"]
    for line in in_order(line for line in lines if line.name):
        remark = f"\n# {_comment(line.remark)}" if line.remark else ""
        parts.append(f"# {_comment(line.origin)}{remark}\n{line.name}={line.value}")
    for head, chosen in (
        ("Without an equivalent here; the result differs:", _by_remark(lines, lost=True)),
        ("The result does not depend on these:", _by_remark(lines, lost=False)),
    ):
        if chosen:
            body = (
                f"#   {_comment(origin)}\n#     → {_comment(remark)}" for remark, origin in chosen.items()
            )
            parts.append("\n".join([f"# {head}", *body]))
    return "\n\n".join(parts)


def report(lines: Sequence[Line]) -> str:
    """What was said in the comments, for the terminal."""
    lost = _by_remark(lines, lost=True)
    notes = _by_remark(lines, lost=False)
    beside = [line for line in lines if line.name and line.remark]  # in the comment of the setting
    shown = [f"no equivalent: {visible(origin)}\n    → {remark}" for remark, origin in lost.items()]
    shown += [
        f"note: {visible(line.origin)}\n    → {line.name}={line.value}: {line.remark}" for line in beside
    ]
    shown += [f"note: {visible(origin)}\n    → {remark}" for remark, origin in notes.items()]
    settings = counted(sum(bool(line.name) for line in lines), "setting")
    flags = sum(line.lost for line in lines)
    return "\n".join([*shown, f"{settings}, {flags} without an equivalent"])


def _by_remark(lines: Iterable[Line], *, lost: bool) -> dict[str, str]:
    """Remarks without a setting, each with the flags that it is about."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.lost == lost and not line.name:
            found.setdefault(line.remark, []).append(line.origin)
    return {remark: ", ".join(origins) for remark, origins in found.items()}


def _comment(text: str) -> str:
    return visible(text).replace("\n", " ")


def _can_hold(name: str, value: str) -> bool:
    """Whether docker and python-dotenv read the value back as it is, and no quotes are taken off it."""
    from dotenv import dotenv_values

    value = with_short_blanks(value)
    if not value or value != value.strip() or _OBEYED.search(value) or value[0] in "\"'":
        return False
    return dotenv_values(stream=io.StringIO(f"{name}={value}\n")).get(name) == value
