"""The declaration of a setting: a pydantic field whose type holds the range, with help, unit and spellings."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticKnownError

from sdjob import reading

LONGEST = 100_000  # bytes of a value; Linux takes arguments of commands of up to 128 KiB


@dataclass(frozen=True)
class Alias:
    """Another name of a setting; `values` translates the values that tutorials use with it."""

    name: str
    values: dict[str, str] = field(default_factory=dict)
    is_switch: bool = False  # as a flag it needs no value
    flag_only: bool = False  # not read from an environment, where the name means something else

    def translate(self, value: str) -> str:
        return self.values.get(value.strip().lower(), value)


@dataclass(frozen=True)
class Setting:
    """What users see of one setting."""

    group: str
    help: str
    unit: str = ""
    name: str = ""  # the name that users type and the plan shows, if not that of the field
    aliases: tuple[Alias | str, ...] = ()
    values: dict[str, str] = field(default_factory=dict)  # spellings of values, under each of its names
    flag_only: bool = False  # a flag of the worker, never read from an environment or a file
    core: bool = False  # always spelled out on the command line, also at its default

    def spellings(self, field_name: str) -> tuple[Alias, ...]:
        """Every accepted name, the one shown to users first."""
        names = dict.fromkeys([self.name or field_name, field_name])
        aliases = [alias if isinstance(alias, Alias) else Alias(alias) for alias in self.aliases]
        every = (*(Alias(name) for name in names), *aliases)
        return tuple(replace(alias, values=self.values | alias.values) for alias in every)


@dataclass(frozen=True)
class Target:
    """What a name sets: a field of a model."""

    model: type[BaseModel]
    field: str
    shown: str  # its name in the plan
    alias: Alias

    @property
    def is_switch(self) -> bool:
        """Whether a flag of this name needs no value."""
        return self.alias.is_switch or self.model.model_fields[self.field].annotation is bool

    @property
    def is_list(self) -> bool:
        """Whether the setting holds several values, so that repeating it appends one."""
        return isinstance(self.model.model_fields[self.field].default, tuple)


def targets(model: type[BaseModel]) -> dict[str, Target]:
    """Every name of every field of a model → what it sets."""
    return {
        alias.name: Target(model, field, about.name or field, alias)
        for field, about in settings_of(model).items()
        for alias in about.spellings(field)
    }


def text_list(value: Any) -> Any:
    """A JSON list, one plain string, or a sequence of strings."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    items = reading.json_of(text) if text.startswith("[") else ([value] if text else [])
    for found in filter(None, (fault_of(item) for item in items if isinstance(item, str))):
        raise ValueError(f"Write text; one of these is {found}")  # JSON can spell what no command can hold
    return items


def fault_of(text: str) -> str:
    """What keeps a text from being an argument of a command, as part of a sentence; "": nothing does."""
    if "\0" in text:
        return "a value with a zero byte"
    try:
        size = len(os.fsencode(text))
    except UnicodeEncodeError:
        return "a value that is not text (half of a surrogate pair)"
    return f"a value of {size:,} bytes" if size > LONGEST else ""


def comma_list(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def lower_list(value: Any) -> Any:
    """The items of a list, separated by commas, in any case."""
    return comma_list(value.lower() if isinstance(value, str) else value)


def whole(value: Any) -> Any:
    """Accept `1e3` as a whole number too; pydantic reads the other spellings."""
    if not isinstance(value, str) or "e" not in value.lower():
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else value


ON = ("1", "true", "yes", "on")
OFF = ("0", "false", "no", "off")


def switch(name: str, on: str, off: str) -> Alias:
    """A yes-or-no alias of a setting that has more than two values."""
    return Alias(name, {**dict.fromkeys(ON, on), **dict.fromkeys(OFF, off)}, is_switch=True)


def any_case(*choices: str, **others: tuple[str, ...]) -> dict[str, str]:
    """Accepted spellings of values, in any case → the value."""
    return dict(zip(choices, choices, strict=True)) | {
        spelling: meant for meant, spellings in others.items() for spelling in spellings
    }


def filled(value: str) -> str:
    """Refuse an empty value. pydantic's own constraint also refuses bytes that are not UTF-8, as paths of data have."""
    if not value:
        raise PydanticKnownError("string_too_short", {"min_length": 1})
    return value


Text = Annotated[str, Field(min_length=1)]
DataPath = Annotated[str, AfterValidator(filled)]
TextList = Annotated[tuple[str, ...], BeforeValidator(text_list)]
CommaList = Annotated[tuple[str, ...], BeforeValidator(comma_list)]
Whole = Annotated[int, BeforeValidator(whole)]
Count = Annotated[Whole, Field(ge=0, le=10**9)]
Positive = Annotated[Whole, Field(ge=1, le=10**9)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


def setting(group: str, default: Any, help: str, **facts: Any) -> Any:
    """Declare a field of a model; `facts`: the other fields of Setting. A default of `...`: must be given."""
    return Field(default, json_schema_extra={"setting": cast(Any, Setting(group, help, **facts))})


def setting_of(info: FieldInfo) -> Setting:
    extra: Any = info.json_schema_extra
    return cast(Setting, extra["setting"])


def settings_of(model: type[BaseModel]) -> dict[str, Setting]:
    """Field name → Setting, in the order of declaration."""
    return {name: setting_of(info) for name, info in model.model_fields.items()}
