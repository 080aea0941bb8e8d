"""Numbers with the word that they count, and bytes in units."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """Such as "1 process" and "2 processes"; `many`: where it is more than the word with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def in_units(size: int) -> str:
    """Bytes, such as "1.5 GB"."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
