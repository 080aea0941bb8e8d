"""The value that `auto` stands for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """A value of a setting, and the reason in a few words that follow its name."""

    value: str
    reason: str
