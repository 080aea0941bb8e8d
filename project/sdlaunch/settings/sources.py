"""Where settings are written: the command line, the environment, an env file, a YAML file.

One rule for values: what cannot be seen at their ends is removed, everywhere. A pair of quotes around a whole value is
removed in the environment and in env files, where `docker run --env-file` and web forms leave them. A shell and YAML
have removed theirs already: what they leave is meant.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdjob import reading
from sdjob.problems import Problem, bad_setting
from sdjob.redact import is_secret
from sdjob.settings.flags import Given

_MOST_LINES = 5000  # each is compared with every name of a setting, and shown
_LONGEST_LINE = 131_071  # MAX_ARG_STRLEN of Linux without the zero byte
_LARGEST_ENV_FILE = 1 << 20  # bytes; python-dotenv takes a hundred times as much
# Blanks by Unicode, and characters of zero width. An expression for them takes a square of the blanks within a text.
_INVISIBLE = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
)
_LONG_BLANKS = re.compile(r"[^\S\r\n]{3,}")
_REFERENCE = re.compile(r"\$\{[^}:]{0,1000}(?::-[^}]{0,1000})?\}")  # that python-dotenv fills in

_QUOTES = ("''", '""', "‘’", "“”")  # an input method types the curly ones


def trimmed(text: str) -> str:
    """Without blanks and zero-width characters at its ends, which come with a text that is pasted."""
    return text.strip(_INVISIBLE)


def _unquoted(name: str, text: str, where: str) -> Given:
    """A value without a pair of quotes around the whole of it."""
    text = trimmed(text)
    ends, inside = text[:1] + text[-1:], text[1:-1]
    if len(text) > 1 and ends in _QUOTES and not set(ends) & set(inside):
        return Given(name, trimmed(inside), where, quoted=True)
    return Given(name, text, where)


def from_command_line(flags: Sequence[tuple[str, str]]) -> list[Given]:
    return [Given(name, trimmed(text), f"command line: --{name}") for name, text in flags]


def from_environment(environ: Mapping[str, str]) -> list[Given]:
    """Every variable that is not empty: an empty one counts as unset."""
    given = [_unquoted(name, text, f"environment: {name}") for name, text in sorted(environ.items())]
    return [each for each in given if each.text]


def from_env_file(path: str) -> tuple[list[Given], list[Problem], list[Problem]]:
    """NAME=value lines, read as `docker --env-file` reads them: the value is the rest of the line.

    Also the problems of lines that mean nothing, and of values that python-dotenv reads differently.
    """
    text, problems = _read(path, "ENV_FILE", _LARGEST_ENV_FILE)
    given = []
    lines = text.split("\n")
    if len(lines) > _MOST_LINES:
        found = f"{path} has {len(lines):,} lines"
        return [], [bad_setting("ENV_FILE", found, f"Give a file of at most {_MOST_LINES:,} lines.")], []
    for number, line in enumerate(lines, 1):
        line = line.lstrip()
        if (size := len(line.encode())) > _LONGEST_LINE:
            found = f"line {number} of {path} has {size:,} bytes"
            remedy = (
                f"Linux passes variables of at most {_LONGEST_LINE:,} bytes, with their names, to a process."
            )
            problems.append(bad_setting("ENV_FILE", found, remedy))
            continue
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name or any(character.isspace() for character in name):
            found = f"line {number} of {path} has no `=` after a name"  # it may hold a secret
            found += ", but a full-width `＝`" if "＝" in line else ""
            problems.append(bad_setting("ENV_FILE", found, "Write NAME=value, or a # comment."))
        elif (item := _unquoted(name, value, f"env file {path}:{number}")).text:
            given.append(item)
    return given, problems, _misread(text, given) if given else []


def _misread(text: str, given: Sequence[Given]) -> list[Problem]:
    """Values that python-dotenv reads differently from docker: comments, ${…}, escapes.

    What references fill in may double with each line: python-dotenv leaves them here.
    """
    from dotenv import dotenv_values

    other = dotenv_values(stream=io.StringIO(with_short_blanks(text)), interpolate=False)

    def found(item: Given) -> str:
        if is_secret(item.name):
            return f"the value in {item.where} is another to docker than to python-dotenv"
        if _REFERENCE.search(str(item.text)):
            return f"{item.text!r} in {item.where} is that to docker, and python-dotenv fills in ${{…}}"
        to_both = f"{item.text!r} to docker and {other.get(item.name)!r} to python-dotenv"
        return f"{item.text!r} in {item.where} is {to_both}"

    return [
        bad_setting(
            item.name,
            found(item),
            "Write the bare value: no comment after it, no ${…}, no quotes.",
        )
        for item in given
        if _REFERENCE.search(str(item.text))
        or with_short_blanks(str(item.text)) not in _readings(other.get(item.name) or "")
    ]


def with_short_blanks(text: str) -> str:
    """With two blanks where there are more: python-dotenv takes a square of them, and reads both alike."""
    return _LONG_BLANKS.sub("  ", text)


def _readings(text: str) -> tuple[object, object]:
    """The value that python-dotenv returned, which leaves curly quotes, with and without these."""
    return trimmed(text), _unquoted("", text, "").text


def from_yaml(path: str) -> tuple[list[Given], list[Problem]]:
    """The top-level names of a YAML file. Scalars keep their spelling, so `no` stays "no"."""
    import yaml

    text, problems = _read(path, "CONFIG_FILE", reading.MESSAGE)
    try:
        root = reading.yaml_nodes(text)
    except ValueError as error:
        return [], [bad_setting("CONFIG_FILE", f"{path}: {error}", "Fix the YAML syntax.")]
    if root is not None and not isinstance(root, yaml.MappingNode):
        found = f"{path} is not a mapping"
        return [], [bad_setting("CONFIG_FILE", found, "Write one `name: value` per line.")]
    given = []
    for key, node in root.value if root else ():
        name, where = str(key.value), f"config file {path}:{key.start_mark.line + 1}"
        if isinstance(node, yaml.ScalarNode):
            if node.tag != "tag:yaml.org,2002:null" and node.value != "":
                given.append(Given(name, trimmed(node.value), where))
        elif isinstance(node, yaml.SequenceNode) and all(isinstance(i, yaml.ScalarNode) for i in node.value):
            given.append(Given(name, tuple(trimmed(item.value) for item in node.value), where))
        else:
            remedy = "Write one value, or a list of plain values."
            problems.append(bad_setting(name, f"a nested value in {where}", remedy))
    return given, problems


def _read(path: str, subject: str, limit: int) -> tuple[str, list[Problem]]:
    """The text of a file, empty where it cannot be read."""
    try:
        content = reading.content(Path(path), limit, patience=reading.PATIENCE)
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        if "\0" not in text:
            return text, []
        found = f"{path} holds zero bytes"
    except UnicodeDecodeError:
        found = f"{path} is not UTF-8 text"
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        found = f"{path}: {getattr(error, 'strerror', error)}"
    return "", [bad_setting(subject, found, f"Give {subject} the path of a readable file, or unset it.")]
