"""Where settings are written: the command line, the environment, an env file, a YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sdjob.problems import Problem, bad_setting
from sdjob.settings.flags import Given


def from_command_line(flags: Sequence[tuple[str, str]]) -> list[Given]:
    return [Given(name, text, f"command line: --{name}") for name, text in flags]


def from_environment(environ: Mapping[str, str]) -> list[Given]:
    """Every variable that is not empty: an empty one counts as unset."""
    return [Given(name, text, f"environment: {name}") for name, text in sorted(environ.items()) if text]


def from_env_file(path: str) -> tuple[list[Given], list[Problem]]:
    """NAME=value lines, read as `docker --env-file` reads them: the value is the rest of the line."""
    text, problems = _read(path, "ENV_FILE")
    given = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.lstrip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name or any(character.isspace() for character in name):
            found = f"line {number} of {path} is {line!r}"
            problems.append(bad_setting("ENV_FILE", found, "Write NAME=value, or a # comment."))
        elif value:
            given.append(Given(name, value, f"env file {path}:{number}"))
    return given, problems


def misread_values(path: str, given: Sequence[Given]) -> list[Problem]:
    """Values that python-dotenv reads differently from docker: quotes, comments, ${…}, spaces at the end."""
    from dotenv import dotenv_values

    other = dotenv_values(path)
    return [
        bad_setting(
            item.name,
            f"{item.text!r} in {item.where} is {item.text!r} to docker and {other.get(item.name)!r} to python-dotenv",
            "Write the bare value: no quotes, no comment after it, no ${…}, no trailing spaces.",
        )
        for item in given
        if other.get(item.name) != item.text
    ]


def from_yaml(path: str) -> tuple[list[Given], list[Problem]]:
    """The top-level names of a YAML file. Scalars keep their spelling, so `no` stays "no"."""
    import yaml

    text, problems = _read(path, "CONFIG_FILE")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        return [], [bad_setting("CONFIG_FILE", f"{path}: {_one_line(error)}", "Fix the YAML syntax.")]
    if root is not None and not isinstance(root, yaml.MappingNode):
        found = f"{path} is not a mapping"
        return [], [bad_setting("CONFIG_FILE", found, "Write one `name: value` per line.")]
    given = []
    for key, node in root.value if root else ():
        name, where = str(key.value), f"config file {path}:{key.start_mark.line + 1}"
        if isinstance(node, yaml.ScalarNode):
            if node.tag != "tag:yaml.org,2002:null" and node.value != "":
                given.append(Given(name, node.value, where))
        elif isinstance(node, yaml.SequenceNode) and all(isinstance(i, yaml.ScalarNode) for i in node.value):
            given.append(Given(name, tuple(item.value for item in node.value), where))
        else:
            remedy = "Write one value, or a list of plain values."
            problems.append(bad_setting(name, f"a nested value in {where}", remedy))
    return given, problems


def _read(path: str, subject: str) -> tuple[str, list[Problem]]:
    """The text of a file, empty where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig"), []
    except OSError as error:
        found = f"{path}: {error.strerror}"
    except UnicodeDecodeError:
        found = f"{path} is not UTF-8 text"
    return "", [bad_setting(subject, found, f"Give {subject} the path of a readable file, or unset it.")]


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}" if mark else what
