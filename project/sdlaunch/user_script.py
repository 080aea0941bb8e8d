"""A user's script instead of the worker: its path, and its arguments with placeholders filled in."""

from __future__ import annotations

import ast
import re
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sdjob import reading
from sdjob.formatting import as_typed
from sdjob.problems import JobError, Problem, bad_input, bad_setting
from sdjob.redact import without_secrets_in
from sdlaunch.inputs.contents import Contents
from sdlaunch.inputs.mounts import Mounts
from sdlaunch.settings import names
from sdlaunch.settings.options import LaunchOptions

_PLACEHOLDER = re.compile(r"\{(\{)?([A-Za-z_]\w*)\}(?(1)\})")  # {name}; {{name}} stands for the text {name}


@dataclass(frozen=True)
class Script:
    """What runs instead of the worker."""

    path: Path
    arguments: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return (str(self.path), *self.arguments)


def resolve(
    options: LaunchOptions, mounts: Mounts, contents: Contents, values: Mapping[str, Any]
) -> tuple[Script | None, list[Problem]]:
    """The script with its arguments filled in, and what is wrong with either. `values`: of all settings, as shown."""
    if options.script is None:
        remedy = "Set script too, or unset script_args."
        return None, [bad_setting("script_args", "set, and no script", remedy)] if options.script_args else []
    path = mounts.project / Path(options.script).expanduser()  # an absolute one stays as it is
    unreadable = any(problem.subject == "PROJECT_DIR" for problem in contents.problems)
    problems = [] if unreadable and path.is_relative_to(mounts.project) else problems_of(path)
    try:
        known = _placeholders(mounts, contents, values)
        return Script(path, arguments_of(options.script_args or "", known)), problems
    except JobError as error:
        return None, [*problems, *error.problems]


def _placeholders(mounts: Mounts, contents: Contents, values: Mapping[str, Any]) -> dict[str, Any]:
    """What script_args may name in braces: four short names, and every name of every setting."""
    return {name: values[target.shown] for name, target in names.catalogue().items()} | {
        "model": str(contents.model_path),
        "dataset": str(contents.dataset_path),
        "output": str(mounts.output),
        "nproc": values["NPROC_PER_NODE"],
    }


def arguments_of(text: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The words of `script_args`, split as a shell would, then filled in: a value never becomes two words.

    Raises JobError for an open quote, and for every placeholder that is not among the values.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        remedy = "Close the quote, or write \\' for the character itself."
        found = f"{without_secrets_in(text)!r}: {str(error).lower()}"
        raise JobError(bad_setting("script_args", found, remedy)) from None
    placeholders = dict.fromkeys(
        match[2] for word in words for match in _PLACEHOLDER.finditer(word) if not match[1]
    )
    unknown = [_unknown(name, values) for name in placeholders if name not in values]
    if unknown:
        raise JobError(unknown)

    def filled(match: re.Match[str]) -> str:
        return f"{{{match[2]}}}" if match[1] else as_typed(values[match[2]])

    return tuple(_PLACEHOLDER.sub(filled, word) for word in words)


def _unknown(name: str, values: Mapping[str, Any]) -> Problem:
    meant = next(iter(get_close_matches(name, values, n=1)), None)
    known = "Write {model}, {dataset}, {output}, {nproc} or the name of a setting"
    remedy = f"Write {{{meant}}}." if meant else f"{known}; {{{{{name}}}}} stands for the text {{{name}}}."
    return bad_setting("script_args", f"unknown placeholder {{{name}}}", remedy)


def problems_of(path: Path) -> list[Problem]:
    """Why Python cannot run this file; empty if it can."""
    remedy = "Set script to a Python file, given absolutely or below PROJECT_DIR."
    try:
        source = reading.content(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(source)
    except FileNotFoundError:
        found = "does not exist"
    except IsADirectoryError:
        found = "is a folder"
    except OSError as error:
        found = f"cannot be read ({error.strerror})"
    except (RecursionError, MemoryError):  # as Python's parser says it
        found = "is nested too deeply for Python"
    except SyntaxError as error:
        found = f"is not a Python program (line {error.lineno}: {error.msg})"
    except ValueError as error:
        found = f"is not a Python program ({error})"
    else:
        return []
    return [bad_input("script", f"{path} {found}", remedy)]
