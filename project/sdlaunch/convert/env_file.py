"""The lines as an env file, each setting below what it comes from."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from sdjob.formatting import counted, visible
from sdlaunch.convert.lines import Line

_FIRST = ("recipe", "model_name", "dataset_name", "DATASET_DIR", "OUTPUT_DIR", "offline")
_UNWRITABLE = (
    "An env file cannot hold this value: give it in a YAML file (CONFIG_FILE) or on the command line."
)

_EMPTY = "it has no value."


def settle(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Lines whose value an env file cannot hold become remarks."""
    return tuple(
        Line(line.origin, remark=f"{line.name}: {_UNWRITABLE if line.value else _EMPTY}", lost=True)
        if line.name and not _can_hold(line.name, line.value)
        else line
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
    without = [line for line in lines if not line.name]
    for head, chosen in (
        ("Without an equivalent here; the result differs:", [line for line in without if line.lost]),
        ("The result does not depend on these:", [line for line in without if not line.lost]),
    ):
        if chosen:
            body = (f"#   {_comment(line.origin)}\n#     → {_comment(line.remark)}" for line in chosen)
            parts.append("\n".join([f"# {head}", *body]))
    return "\n\n".join(parts)


def report(lines: Sequence[Line]) -> str:
    """What was said in the comments, for the terminal."""
    lost = [line for line in lines if line.lost]
    notes = [line for line in lines if line.remark and not line.lost]
    shown = [f"no equivalent: {visible(line.origin)}\n    → {line.remark}" for line in lost]
    shown += [f"note: {visible(line.origin)}\n    → {line.remark}" for line in notes]
    count = counted(sum(bool(line.name) for line in lines), "setting")
    return "\n".join([*shown, f"{count}, {counted(len(notes), 'note')}, {len(lost)} without an equivalent"])


def _comment(text: str) -> str:
    return visible(text).replace("\n", " ")


def _can_hold(name: str, value: str) -> bool:
    """Whether docker and python-dotenv read the value back as it is, and no quotes are taken off it."""
    from dotenv import dotenv_values

    if not value or value != value.strip() or "\n" in value or value[0] in "\"'":
        return False
    return dotenv_values(stream=io.StringIO(f"{name}={value}\n")).get(name) == value
