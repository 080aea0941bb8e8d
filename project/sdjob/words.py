"""Numbers with the word that they count."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """Such as "1 process" and "2 processes"; `many`: where it is more than the word with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
