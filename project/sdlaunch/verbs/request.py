"""What the command line asks for: an optional verb, then settings as flags.

Not argparse: a setting is `name=value`, `--name=value` or `--name value` with any text as its value (`--lr -1`,
`--instance_prompt "--x"`), its name in any case, with dashes or underscores, and all mistakes are reported at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from sdjob.problems import Problem, bad_setting
from sdjob.redact import is_secret
from sdjob.settings.diffusers_flags import UNSUPPORTED
from sdjob.settings.fields import OFF, ON
from sdlaunch.settings import names

_SWITCHES = {"--dry-run": "plan", "-h": "help", "--help": "help"}


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    verb: str
    json: bool = False
    flags: tuple[tuple[str, str], ...] = ()
    operand: str = ""  # the word after a verb that takes one
    arguments: Mapping[str, str] = field(default_factory=dict)  # of the verb, not settings
    words: tuple[str, ...] = ()  # of another program, as they are
    problems: tuple[Problem, ...] = ()  # words that could not be understood


@dataclass(frozen=True)
class Verb:
    """What the launcher can do. `run` returns the exit code; its Path is the folder of train.sh."""

    run: Callable[[Request, Mapping[str, str], Path], int]
    help: str | Callable[[], str]
    json: bool = False  # also prints JSON
    operand: str = ""  # what --help calls the word after the verb; "": none
    arguments: tuple[str, ...] = ()  # names of NAME=VALUE that belong to the verb and are not settings
    takes_words: bool = False  # after `--`, another program's command line
    passes_on: bool = False  # every word after the verb, as it is


Verbs = Mapping[str, Verb]


def parse(argv: Sequence[str], verbs: Verbs) -> Request:
    """Parse every word of the command line; a word that means nothing is a problem."""
    asked: list[str] = []
    flags: list[tuple[str, str]] = []
    problems: list[Problem] = []
    operand, as_json, rest = "", False, tuple[str, ...]()
    words = deque(argv)
    while words:
        word = words.popleft()
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if (verb := _SWITCHES.get(word, word)) in verbs:
            asked.append(verb)
            if verbs[verb].passes_on:
                rest = tuple(words)
                words.clear()
            takes_operand = verbs[verb].operand and words and words[0] != "--"
            operand = words.popleft() if takes_operand else operand
        elif word == "--" and asked and verbs[asked[-1]].takes_words:
            rest = tuple(words)
            words.clear()
        elif word == "--json":
            as_json = True
        elif equals and name:
            flags.append((name, value))
        elif word.startswith("--") and name:
            given, wrong = _flag_without_equals(name, words, verbs)
            flags += given
            problems += wrong
        else:
            problems.append(_not_understood(word, verbs))
    verb = "help" if "help" in asked else (asked or ["run"])[0]
    if len(set(asked)) > 1 and verb != "help":
        problems.append(bad_setting("command line", " and ".join(asked), "Ask for one thing at a time."))
    if as_json and not verbs[verb].json:
        with_json = " or ".join(f"{name} --json" for name, each in verbs.items() if each.json)
        problems.append(bad_setting("--json", f"{verb} prints no JSON", f"Write {with_json}."))
    own = verbs[verb].arguments
    arguments = {name: value for name, value in flags if name in own}
    settings = tuple((name, value) for name, value in flags if name not in own)
    return Request(verb, as_json, settings, operand, arguments, rest, tuple(problems))


def _flag_without_equals(
    name: str, words: deque[str], verbs: Verbs
) -> tuple[list[tuple[str, str]], list[Problem]]:
    """--use_ema is a switch; every other flag takes the next word as its value, a list the words after it too."""
    target, unsupported = names.lookup(name, any_case=True), UNSUPPORTED.get(name.lower())
    known = target or unsupported
    if known is None and not any(name in verb.arguments for verb in verbs.values()):
        if is_secret(name) and words and not words[0].startswith("-"):
            words.popleft()  # its value, which no message may show
        return [], [_not_understood(f"--{name}", verbs)]
    if known and known.is_switch:
        has_value = bool(words) and words[0].lower() in (*ON, *OFF)
        return [(name, words.popleft() if has_value else "true")], []
    is_list = target.is_list if target else unsupported is not None
    values = [words.popleft()] if words and (target or not unsupported) else []
    if is_list:
        while words and not _starts_something(words[0], verbs):
            values.append(words.popleft())
    if not values:
        return [], [bad_setting(name, "no value", f"Write --{name}=VALUE.")]
    return [(name, value) for value in values], []


def _starts_something(word: str, verbs: Verbs) -> bool:
    """Whether a word after the values of a list is not one of them."""
    name, equals, _ = word.partition("=")
    return word.startswith("--") or word in verbs or bool(equals and names.lookup(name, any_case=True))


def _not_understood(word: str, verbs: Verbs) -> Problem:
    name = word.strip("-").partition("=")[0]
    if verb := get_close_matches(name, verbs, n=1, cutoff=0.75):
        remedy = f"Did you mean {verb[0]}?"
    elif setting := names.near_miss(name):
        remedy = f"Write {setting}=VALUE."
    else:
        remedy = f"Verbs are {', '.join(verbs)}; settings are name=value."
    return bad_setting("command line", f"{word!r} is neither a verb nor a setting", remedy)
