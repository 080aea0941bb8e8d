"""Reading what others wrote, which may be anything: bounded, without waiting for it, and with one kind of error."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGEST = (
    32 << 20
)  # bytes of a file that is read as a whole: as values of Python, JSON takes up to 30 times as much
TEXT = 256 << 20  # of one with a line for each image
_LARGEST_YAML = 256 << 10  # characters, which take PyYAML seconds and a hundred times their memory
MESSAGE = 16 << 20  # of one that this project has written, or that holds settings
# What a value of JSON raises where it is not what this project has written; the last for infinity and huge numbers.
NOT_AS_WRITTEN = (ValueError, KeyError, TypeError, AttributeError, OverflowError)
PATIENCE = 5.0  # seconds for a pipe with settings, as of a shell's <(…)
_BLOCK = 1 << 20
_POLL = 0.01  # seconds


def content(path: Path, limit: int = LARGEST, *, patience: float = 0.0) -> bytes:
    """The bytes of a regular file, or of a pipe whose writer ends within `patience` seconds. Raises OSError."""
    with opened(path, pipe=patience > 0) as file:
        is_pipe = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
        return _read(file.fileno(), path, limit, time.monotonic() + patience if is_pipe else None)


def opened(path: Path, *, pipe: bool = False) -> BinaryIO:
    """A regular file, or a pipe where that is allowed, opened without waiting for a writer. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or (pipe and stat.S_ISFIFO(mode)):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def _read(descriptor: int, path: Path, limit: int, until: float | None) -> bytes:
    """All bytes up to the end; of a pipe, until then. Raises OSError."""
    blocks: list[bytes] = []
    size = 0
    while True:
        block = os.read(descriptor, _BLOCK) if until is None else _next_block(descriptor, until, not blocks)
        if block is None:
            raise OSError(errno.ETIMEDOUT, "a pipe that nothing writes to", str(path))
        if not block:
            return b"".join(blocks)
        blocks.append(block)
        size += len(block)
        if size > limit:
            most = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
            raise OSError(errno.EFBIG, f"larger than {most}", str(path))


def _next_block(descriptor: int, until: float, is_first: bool) -> bytes | None:
    """What a pipe holds, nothing at its end, or None at that time. Before its first writer it seems to have ended."""
    while True:
        with contextlib.suppress(BlockingIOError):
            block = os.read(descriptor, _BLOCK)
            if block or not is_first:
                return block
        if time.monotonic() > until:
            return None
        time.sleep(_POLL)


def json_of(text: str | bytes, not_finite: Callable[[str], Any] = float) -> Any:
    """The value that JSON describes. Raises ValueError, also where it is nested deeper than its reader goes.

    `not_finite`: what becomes of the texts of numbers that are not, or are too large to be.
    """

    def number(digits: str) -> Any:
        return value if math.isfinite(value := float(digits)) else not_finite(digits)

    try:
        return json.loads(text, parse_constant=not_finite, parse_float=number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def typed(kind: type[Item], value: Any) -> Item:
    """A value of JSON as this type, such as a dataclass; what the type does not name is left out. Raises ValueError."""
    found: Item = _adapter(kind).validate_python(value)  # type: ignore[arg-type]  # mypy takes type[T] for unhashable
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # Slow: the launcher listens for signals before, by a module that imports this one.
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def toml_of(text: str) -> dict[str, Any]:
    """The table that TOML describes. Raises ValueError."""
    try:
        import tomllib
    except ModuleNotFoundError:
        raise ValueError("TOML needs Python 3.11 or newer") from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def yaml_of(text: str, loader: Any) -> Any:
    """The value that YAML describes, by a loader of PyYAML. Raises ValueError with the reason in one line."""
    import yaml

    _check_yaml(text)
    try:
        return yaml.load(text, Loader=loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # of values that look like a number or a date, of any type
        raise ValueError(reason_of(error)) from error


def yaml_nodes(text: str) -> Any:
    """The nodes of YAML, whose scalars keep their spelling; None: it is empty. Raises ValueError."""
    import yaml

    _check_yaml(text)
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(reason_of(error)) from error


def _check_yaml(text: str) -> None:
    if len(text) > _LARGEST_YAML:
        raise ValueError(f"larger than {_LARGEST_YAML >> 10} KiB")


def reason_of(error: Exception) -> str:
    """Where the syntax is wrong, and how, in one line."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or next(iter(str(error).splitlines()), type(error).__name__)
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}" if mark else what


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], threads: int = 16) -> list[Result]:
    """The result of `work`, which waits for a disk or a network, for each item, in order. Raises what it raises."""
    from concurrent.futures import ThreadPoolExecutor

    def every_nth(first: int) -> list[Result]:  # a task an item would cost more than a short `work`
        return [work(item) for item in items[first::threads]]

    with ThreadPoolExecutor(threads) as pool:
        slices = list(pool.map(every_nth, range(threads)))
    return [slices[index % threads][index // threads] for index in range(len(items))]
