"""Values as text: counts with their noun, bytes in units, settings, JSON."""

from __future__ import annotations

import json
import re
from typing import Any

# Characters that do something where they are shown, or are not seen: commands of terminals, line ends other than \n,
# directions of writing, zero width. Not tabs.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\U000e0000-\U000e007f]"
)
_COLORS = re.compile(r"(\x1b\[[0-9;]{0,20}m)")  # of a terminal (ECMA-48)


def visible(text: str, *, colors: bool = False) -> str:
    """A text of others, fit for a terminal or a log, with escapes for what is not seen. `colors`: those may stay."""
    if not _HIDDEN.search(text):
        return text
    parts = _COLORS.split(text) if colors else [text]  # the commands at odd positions
    return "".join(part if index % 2 else _HIDDEN.sub(_escape, part) for index, part in enumerate(parts))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])  # \x80 and above would be bytes to a shell, and in the names of files
    return f"\\u{code:04x}" if 0x80 <= code < 0x100 else match[0].encode("unicode_escape").decode()


def counted(number: int, noun: str) -> str:
    """A count with its noun, such as "1 process" and "2 processes"."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def in_units(size: int) -> str:
    """Bytes in the largest unit that fits, such as "1.5 GB"."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def as_json(value: Any) -> str:
    """JSON for people and programs, without hidden characters."""
    return json_text(value, indent=2)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that is readable in any language, and has escapes for what is not seen; strings are also Python's."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _HIDDEN.sub(lambda match: json.dumps(match[0])[1:-1], text)


def as_typed(value: Any) -> str:
    """A setting's value as a user may type it: None is the empty text, several values are a JSON list."""
    if isinstance(value, list | tuple):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
