"""Numbers as text: counts with their noun, bytes in units."""

from __future__ import annotations


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
