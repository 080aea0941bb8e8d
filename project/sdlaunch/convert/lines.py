"""Flags of another trainer, and what becomes of each: a setting of the env file, a remark, or both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sdjob.formatting import as_typed, visible
from sdjob.redact import HIDDEN, is_secret, redact
from sdjob.settings.fields import OFF, ON

DEFAULT = "Says what is the default here."
_LONGEST = 200  # characters of a value in a comment
_WHOLE = re.compile(r"[0-9]{1,50}")


@dataclass(frozen=True)
class Flag:
    """A flag with its values, or a key of a file."""

    name: str  # with underscores
    values: tuple[str, ...] = ()
    key: bool = False  # of a file, where it has no dashes
    written: str = ""  # as the user wrote it, if name or values are others now

    @property
    def text(self) -> str:
        return " ".join(self.values)

    @property
    def is_off(self) -> bool:
        """Whether a switch says no."""
        return self.text.strip().lower() in OFF

    @property
    def as_switch(self) -> str:
        """The value of a yes-or-no flag, which may have none."""
        return self.text if self.values else ON[0]

    @classmethod
    def of_key(cls, name: str, value: Any) -> Flag:
        """A key of a file with its value, or its list of values."""
        return cls(name, tuple(map(_typed, value if isinstance(value, list) else [value])), key=True)

    def __str__(self) -> str:
        """As it was written, fit for a comment: on one line, not too long, without secrets."""
        if self.written:
            return self.written
        value = HIDDEN if self.values and is_secret(self.name) else redact(self.text, ())
        value = visible(value).replace("\n", "\\n")
        shown = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
        if self.key:
            return f"{self.name} = {shown}"
        return f"--{self.name}={shown}" if self.values else f"--{self.name}"


def _typed(value: Any) -> str:
    try:
        return as_typed(value)
    except (ValueError, RecursionError):  # Python does not write a number of more than 4,300 digits
        return "a value that is too long"


def whole(text: str) -> int | None:
    """The number that a text is, if it is a whole one that can be computed with."""
    return int(text) if _WHOLE.fullmatch(text) else None


@dataclass(frozen=True)
class Line:
    """What becomes of a flag: `name`=`value`, if there is such a setting, and what has to be said about it."""

    origin: str  # the flag as it was written, or where a default comes from
    name: str = ""
    value: str = ""
    remark: str = ""
    lost: bool = False  # something that changes the result has no equivalent


Rule = Callable[[Flag], Iterable[Line]]


def setting(name: str, change: Callable[[str], str] = str) -> Rule:
    """A flag with one value that is a setting under another name, or with another value."""
    return lambda flag: [Line(str(flag), name, change(flag.text))]


def fixed(name: str, value: str) -> Rule:
    """A switch that is one value of a setting; where it says no, the default is meant."""
    return lambda flag: [Line(str(flag), remark=DEFAULT) if flag.is_off else Line(str(flag), name, value)]


def note(text: str) -> Rule:
    """A flag that the result does not depend on."""
    return lambda flag: [Line(str(flag), remark=text)]


def lost(text: str) -> Rule:
    """A flag that changes the result and has no equivalent."""
    return lambda flag: [Line(str(flag), remark=text, lost=True)]
