"""The launcher's command line: an optional verb, then settings as flags. A verb is a function and a line of VERBS.

Not argparse: a setting is `name=value`, `--name=value` or `--name value` with any text as its value (`--lr -1`,
`--instance_prompt "--x"`), its name in any case, with dashes or underscores, and all mistakes are reported at once.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from sdjob.problems import JobError, Problem, bad_setting, exit_code
from sdjob.redact import is_secret, redact, secrets_of
from sdjob.settings.diffusers_flags import UNSUPPORTED
from sdjob.settings.fields import OFF, ON
from sdlaunch import plan
from sdlaunch.display import console
from sdlaunch.display import text as display
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
    words: tuple[str, ...] = ()  # after `--`, as they are
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


def main(argv: Sequence[str], environ: Mapping[str, str], home: Path) -> int:
    """Do what the command line asks for; returns the exit code."""
    request = parse(argv)
    return VERBS[request.verb].run(request, environ, home)


# --- verbs -------------------------------------------------------------------------------------------


def _run(request: Request, environ: Mapping[str, str], home: Path) -> int:
    job = plan.prepare(request.flags, environ, home, request.problems, fetch=True)
    if job.problems:
        from sdlaunch.supervise import failure_report

        job = failure_report.refuse(job, request.verb)
        console.show(display.check_json(job) if request.json else display.check(job), sys.stderr)
        return job.code
    from sdlaunch.supervise import supervisor

    console.show(display.start(job), sys.stdout)
    return supervisor.run(job, environ)


def _report(request: Request, environ: Mapping[str, str], home: Path) -> int:
    """`plan` and `check`."""
    from sdlaunch.supervise import failure_report
    from sdlaunch.verbs import check

    job = plan.prepare(request.flags, environ, home, request.problems)
    if request.verb == "check":
        job = check.with_tensors(job, environ)
    job = failure_report.refuse(job, request.verb)
    if request.verb == "check":
        text = display.check_json(job) if request.json else display.check(job)
    elif request.json:
        text = display.plan_json(job)
    else:
        text = display.plan(job, dim=sys.stdout.isatty() and "NO_COLOR" not in environ)
    console.show(text, sys.stdout)
    return job.code


def _emit(request: Request, environ: Mapping[str, str], home: Path) -> int:
    from sdlaunch import emit
    from sdlaunch.emit.task import task_of

    kind = request.arguments.get("kind")
    target = emit.TARGETS.get(request.operand)
    problems = [*request.problems, *emit.problems_of(request.operand, kind)]
    ranks = target is not None and target.assigns_ranks
    job = plan.prepare(request.flags, environ, home, problems, assigns_ranks=ranks)
    if target is None or job.launch is None:
        console.show(redact(display.problems(job.problems), job.secrets), sys.stderr)
        return job.code
    render = target.kinds[kind] if kind else target.render
    console.show(redact(render(task_of(job, home)), job.secrets), sys.stdout)
    return 0


def _emit_help() -> str:
    from sdlaunch.emit import TARGETS

    targets = [
        f"{name} [--kind={'|'.join(target.kinds)}]" if target.kinds else name
        for name, target in TARGETS.items()
    ]
    return f"print the same job for {', '.join(targets[:-1])} or {targets[-1]}"


def _export(request: Request, environ: Mapping[str, str], home: Path) -> int:
    from sdlaunch.verbs import export

    try:
        job = export.prepare(request.arguments, request.flags, environ, home)
        refused = request.problems
    except JobError as error:
        refused = (*request.problems, *error.problems)
    if refused:
        console.show(redact(display.problems(refused), secrets_of(environ)), sys.stderr)
        return exit_code(refused)
    return export.run(job, environ, home)


def _convert(request: Request, environ: Mapping[str, str], home: Path) -> int:
    from sdlaunch.verbs import convert

    refused = list(request.problems)
    if request.flags:
        found = f"convert with {', '.join(name for name, _ in request.flags)}"
        remedy = "Write a command after --, as in: convert -- accelerate launch train_dreambooth.py …"
        refused.append(bad_setting("command line", found, remedy))
    try:
        if refused:
            raise JobError(refused)
        return convert.run(request.operand, request.words)
    except JobError as error:
        console.show(redact(display.problems(error.problems), secrets_of(environ)), sys.stderr)
        return error.code


def _publish(request: Request, environ: Mapping[str, str], home: Path) -> int:
    from sdlaunch.verbs import publish

    try:
        if request.problems:
            raise JobError(request.problems)
        return publish.run(request.arguments, request.flags, environ, home)
    except JobError as error:
        console.show(redact(display.problems(error.problems), secrets_of(environ)), sys.stderr)
        return error.code


def _init(request: Request, environ: Mapping[str, str], home: Path) -> int:
    from sdlaunch.verbs import init

    ask = init.in_terminal if sys.stdin.isatty() and sys.stderr.isatty() else None
    try:
        if request.problems:
            raise JobError(request.problems)
        text = init.run(init.prepare(request.arguments, request.flags, environ, home, ask))
    except JobError as error:
        console.show(redact(display.problems(error.problems), secrets_of(environ)), sys.stderr)
        return error.code
    console.show(redact(text, secrets_of(environ)), sys.stdout)
    return 0


def _doctor(request: Request, environ: Mapping[str, str], home: Path) -> int:
    from sdlaunch.verbs import doctor

    refused = list(request.problems)
    if request.flags:
        found = f"doctor with {', '.join(name for name, _ in request.flags)}"
        refused.append(bad_setting("command line", found, "doctor takes no settings: leave them out."))
    diagnosis = doctor.Diagnosis({}, tuple(refused)) if refused else doctor.examine(home, environ)
    console.show(diagnosis.to_json() if request.json else doctor.render(diagnosis), sys.stdout)
    return diagnosis.code


def _help(request: Request, environ: Mapping[str, str], home: Path) -> int:
    from sdlaunch.verbs import help as help_verb

    verbs = [
        (
            " ".join(filter(None, [name, verb.operand, "[--json]" if verb.json else ""])),
            verb.help if isinstance(verb.help, str) else verb.help(),
        )
        for name, verb in VERBS.items()
    ]
    console.show(help_verb.text(verbs), sys.stdout)
    return 0


VERBS: Mapping[str, Verb] = {
    "run": Verb(_run, "check everything, then train (also without a verb)"),
    "plan": Verb(
        _report,
        "show every setting with its source, the mounts, the command and the problems (also --dry-run)",
        json=True,
    ),
    "check": Verb(_report, "show the problems only", json=True),
    "emit": Verb(_emit, _emit_help, operand="TARGET", arguments=("kind",)),
    "export": Verb(
        _export,
        "write the result of a step checkpoint: checkpoint=NAME [to=FOLDER] [weights=ema|raw]",
        arguments=("checkpoint", "to", "weights"),
    ),
    "publish": Verb(
        _publish,
        "upload a result: to=hub:USER/NAME or to=s3://BUCKET/FOLDER [from=FOLDER]",
        arguments=("to", "from"),
    ),
    "convert": Verb(
        _convert,
        "print the env file that means the same as a command line of diffusers, Colossal-AI or kohya (a shell script, "
        "or the command after --), or a .toml of kohya or config.json of SimpleTuner",
        operand="FILE",
        takes_words=True,
    ),
    "init": Verb(
        _init,
        "write an env file: model=NAME data=NAME learn='a photo of sks dog'|captions length=normal|STEPS [to=FILE]; "
        "asks for what is missing",
        arguments=("model", "data", "learn", "length", "to"),
    ),
    "doctor": Verb(
        _doctor,
        "what this machine and its packages can do: versions, devices, kernels; needs no mounts",
        json=True,
    ),
    "help": Verb(_help, "this text (also --help)"),
}


# --- parsing -----------------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> Request:
    """Parse every word of the command line; a word that means nothing is a problem."""
    verbs: list[str] = []
    flags: list[tuple[str, str]] = []
    problems: list[Problem] = []
    operand, as_json, rest = "", False, tuple[str, ...]()
    words = deque(argv)
    while words:
        word = words.popleft()
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if (verb := _SWITCHES.get(word, word)) in VERBS:
            verbs.append(verb)
            takes_operand = VERBS[verb].operand and words and words[0] != "--"
            operand = words.popleft() if takes_operand else operand
        elif word == "--" and verbs and VERBS[verbs[-1]].takes_words:
            rest = tuple(words)
            words.clear()
        elif word == "--json":
            as_json = True
        elif equals and name:
            flags.append((name, value))
        elif word.startswith("--") and name:
            given, wrong = _flag_without_equals(name, words)
            flags += given
            problems += wrong
        else:
            problems.append(_not_understood(word))
    verb = "help" if "help" in verbs else (verbs or ["run"])[0]
    if len(set(verbs)) > 1 and verb != "help":
        problems.append(bad_setting("command line", " and ".join(verbs), "Ask for one thing at a time."))
    if as_json and not VERBS[verb].json:
        with_json = " or ".join(f"{name} --json" for name, each in VERBS.items() if each.json)
        problems.append(bad_setting("--json", f"{verb} prints no JSON", f"Write {with_json}."))
    own = VERBS[verb].arguments
    arguments = {name: value for name, value in flags if name in own}
    settings = tuple((name, value) for name, value in flags if name not in own)
    return Request(verb, as_json, settings, operand, arguments, rest, tuple(problems))


def _flag_without_equals(name: str, words: deque[str]) -> tuple[list[tuple[str, str]], list[Problem]]:
    """--use_ema is a switch; every other flag takes the next word as its value, a list the words after it too."""
    target, unsupported = names.lookup(name, any_case=True), UNSUPPORTED.get(name.lower())
    known = target or unsupported
    if known is None and not any(name in verb.arguments for verb in VERBS.values()):
        if is_secret(name) and words and not words[0].startswith("-"):
            words.popleft()  # its value, which no message may show
        return [], [_not_understood(f"--{name}")]
    if known and known.is_switch:
        has_value = bool(words) and words[0].lower() in (*ON, *OFF)
        return [(name, words.popleft() if has_value else "true")], []
    is_list = target.is_list if target else unsupported is not None
    values = [words.popleft()] if words and (target or not unsupported) else []
    if is_list:
        while words and not _starts_something(words[0]):
            values.append(words.popleft())
    if not values:
        return [], [bad_setting(name, "no value", f"Write --{name}=VALUE.")]
    return [(name, value) for value in values], []


def _starts_something(word: str) -> bool:
    """Whether a word after the values of a list is not one of them."""
    name, equals, _ = word.partition("=")
    return word.startswith("--") or word in VERBS or bool(equals and names.lookup(name, any_case=True))


def _not_understood(word: str) -> Problem:
    name = word.strip("-").partition("=")[0]
    if verb := get_close_matches(name, VERBS, n=1, cutoff=0.75):
        remedy = f"Did you mean {verb[0]}?"
    elif setting := names.near_miss(name):
        remedy = f"Write {setting}=VALUE."
    else:
        remedy = f"Verbs are {', '.join(VERBS)}; settings are name=value."
    return bad_setting("command line", f"{word!r} is neither a verb nor a setting", remedy)
