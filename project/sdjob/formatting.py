"""Values as text: counts with their noun, bytes in units, settings, JSON."""

from __future__ import annotations

import json
from typing import Any


def counted(number: int, one: str, many: str = "") -> str:
    """A count with its noun, such as "1 process" and "2 processes"; `many`: an irregular plural."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def in_units(size: int) -> str:
    """Bytes in the largest unit that fits, such as "1.5 GB"."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def as_json(value: Any) -> str:
    """JSON for people and programs."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def as_typed(value: Any) -> str:
    """A setting's value as a user may type it: None is the empty text, several values are a JSON list."""
    if isinstance(value, list | tuple):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
