"""A command line as a list of words, from a shell script, read without a shell: quotes, continued lines, `$NAME`.

Only what such scripts hold is understood: assignments, one training command, redirections. Nothing is executed, and
values come from the text alone, never from the environment.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from sdjob.formatting import visible
from sdjob.problems import JobError, bad_setting
from sdlaunch.convert.lines import Flag, Line

_CONTINUED = re.compile(r"[\\^`]\r?\n")  # of sh, cmd.exe and PowerShell
_BROKEN = re.compile(r"\\[ \t]+\r?\n")  # to a shell, a blank as an argument and the end of the command
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_LONGEST_WORD = 131_071  # bytes that Linux takes as an argument
_MOST = 16 * _LONGEST_WORD  # characters of all words
_PUNCTUATION = "();<>|&\n"
_IGNORED_WORDS = ("nohup", "exec", "time", "env", "sudo", "export", "declare", "set", "local")
_LAUNCHERS = (("accelerate", "launch"), ("colossalai", "run"), ("accelerate-launch",), ("torchrun",))
_MODULES = {
    "accelerate.commands.launch": "accelerate",
    "torch.distributed.run": "torchrun",
    "torch.distributed.launch": "torchrun",
}


@dataclass(frozen=True)
class Command:
    """A training command: how processes are started, and the script with its flags."""

    launcher: str  # "accelerate", "torchrun", "colossalai", or "python"
    launcher_flags: tuple[Flag, ...]
    script: str  # its name without folder and suffix
    flags: tuple[Flag, ...]
    variables: tuple[tuple[str, str], ...] = ()  # assignments that the command does not use itself
    remarks: tuple[Line, ...] = ()


def from_text(text: str, scripts: Iterable[str]) -> Command:
    """The training command of a shell script; `scripts`: names that are known. Raises JobError (64)."""
    remarks = [_broken_backslash()] if _BROKEN.search(text) else []
    lines = _BROKEN.sub(" ", _CONTINUED.sub(" ", text)).splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    variables = _Variables()
    commands: list[list[str]] = []
    for words in _simple_commands(text):
        while words and (words[0] in _IGNORED_WORDS or _ASSIGNMENT.fullmatch(words[0])):
            if match := _ASSIGNMENT.fullmatch(words.pop(0)):
                variables.values[match[1]] = variables.filled_in(match[2], set())
        words = [variables.filled_in(word, variables.used) for word in words]
        if words and words[0].startswith("--") and commands:
            commands[-1] += words
            remarks.append(_missing_backslash(words[0]))
        elif words:
            commands.append(words)
    known = frozenset(scripts)
    training = [words for words in commands if _script_index(words, known) is not None]
    if len(training) > 1:
        found = f"{len(training)} training commands"
        raise JobError(bad_setting("command line", found, "Leave one of them in the file, and convert each."))
    command = from_words(training[0] if training else (commands or [[]])[-1], known)
    others = tuple((name, value) for name, value in variables.values.items() if name not in variables.used)
    return Command(**{**vars(command), "variables": others, "remarks": (*remarks, *command.remarks)})


def from_words(words: Sequence[str], scripts: Iterable[str]) -> Command:
    """A command that a shell has split already. Raises JobError (64)."""
    known = frozenset(scripts)
    index = _script_index(words, known)
    if index is None:
        seen = [word for word in words if word.endswith(".py")]
        found = f"{seen[0]} is not a script that is known" if seen else "no training script"
        remedy = f"Known are {', '.join(f'{name}.py' for name in sorted(known))}."
        raise JobError(bad_setting("command line", found, remedy))
    launcher, before = _launcher(words[:index])
    launcher_flags, odd = flags_of(before)
    flags, others = flags_of(words[index + 1 :])
    unset = sorted({match[0] for word in words for match in _VARIABLE.finditer(word)})
    remarks = [
        *(Line(word, remark="Not a flag, and not the value of one: nothing was read from it.", lost=True)
          for word in (*odd, *others) if word.strip()),
        *(Line(name, remark="Has no value in the file: write it in the lines that hold it.", lost=True)
          for name in unset),
    ]  # fmt: skip
    name = PurePath(words[index]).stem
    return Command(launcher, tuple(launcher_flags), name, tuple(flags), (), tuple(remarks))


def flags_of(words: Sequence[str]) -> tuple[list[Flag], list[str]]:
    """Flags with the words after each as its values, and words that belong to none."""
    flags: list[tuple[str, list[str]]] = []
    odd: list[str] = []
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            name, equals, value = word.lstrip("-").partition("=")
            flags.append((name.replace("-", "_"), [value] if equals else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            odd.append(word)
    return [Flag(name, tuple(values)) for name, values in flags], odd


def _simple_commands(text: str) -> list[list[str]]:
    """The words of each command, split as a shell does, without redirections. Raises JobError (64)."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_PUNCTUATION)
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        tokens = list(lexer)
    except ValueError as error:
        remedy = "Close the quotes, or give the command itself: convert -- accelerate launch …"
        raise JobError(bad_setting("command line", f"not a command line: {error}", remedy)) from None
    commands: list[list[str]] = [[]]
    skip = comment = False
    for token in tokens:
        is_punctuation = bool(token) and set(token) <= {*_PUNCTUATION}
        if comment and "\n" not in token:
            continue
        comment = False
        if is_punctuation and {"<", ">"} & {*token}:
            skip = True
            if commands[-1] and commands[-1][-1] in ("1", "2"):
                commands[-1].pop()
        elif is_punctuation:
            commands.append([])
        elif skip:
            skip = False
        elif token.startswith("#"):
            comment = True
        else:
            commands[-1].append(token)
    return [words for words in commands if words]


@dataclass
class _Variables:
    """The variables that the text has set so far, and which of them its commands use."""

    values: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    _size: int = 0  # characters of all words

    def filled_in(self, word: str, used: set[str]) -> str:
        """The word with the values of its variables, whose names are added to `used`. Raises JobError (64)."""

        def value(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            used.add(name)
            return self.values.get(name, match[0])

        text = _VARIABLE.sub(value, word)
        self._size += len(text)
        for what, size, most in (
            (f"{visible(word[:40])}… has", len(text), _LONGEST_WORD),
            ("the words have", self._size, _MOST),
        ):
            if size > most:  # variables made of variables grow without bound
                found = f"{what} {size:,} characters with {'its' if size == len(text) else 'their'} variables"
                raise JobError(bad_setting("command line", found, f"Write at most {most:,} characters."))
        return text


def _script_index(words: Sequence[str], known: frozenset[str]) -> int | None:
    for index, word in enumerate(words):
        if word.endswith(".py") and PurePath(word).stem in known:
            return index
    return None


def _launcher(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The program that starts the processes, and its flags."""
    names = [PurePath(word).name for word in words]
    for launcher in _LAUNCHERS:
        if tuple(names[: len(launcher)]) == launcher:
            return launcher[0].partition("-")[0], words[len(launcher) :]
    if len(words) > 2 and names[0].startswith("python") and words[1] == "-m" and words[2] in _MODULES:
        return _MODULES[words[2]], words[3:]
    if names and not names[0].startswith("python"):
        remedy = "Known are accelerate launch, torchrun, colossalai run and python."
        raise JobError(bad_setting("command line", f"a command of {words[0]}", remedy))
    return "python", ()


def _broken_backslash() -> Line:
    text = "A shell ends the command there, so that the flags below it are lost. They are read as meant."
    return Line("a backslash with blanks after it", remark=text)


def _missing_backslash(word: str) -> Line:
    name = word.partition("=")[0]
    text = "A shell ends the command there, so that this flag and those below it are lost. They are read as meant."
    return Line(f"no backslash in the line above {name}", remark=text)
