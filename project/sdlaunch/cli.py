"""The launcher's verbs: a function and a row of VERBS each. verbs/request.py reads the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError, Problem, bad_setting
from sdjob.redact import redact, secrets_of
from sdlaunch import plan
from sdlaunch.display import console
from sdlaunch.display import text as display
from sdlaunch.verbs import request as command_line
from sdlaunch.verbs.request import Request, Verb


def main(argv: Sequence[str], environ: Mapping[str, str], home: Path) -> int:
    """Do what the command line asks for; returns the exit code."""
    request = parse(argv)
    try:
        return VERBS[request.verb].run(request, environ, home)
    except JobError as error:
        refused = JobError([*request.problems, *error.problems])
        console.show(redact(display.problems(refused.problems), secrets_of(environ)), sys.stderr)
        return refused.code


def parse(argv: Sequence[str]) -> Request:
    """What the words of a command line ask for."""
    return command_line.parse(argv, VERBS)


def _run(request: Request, environ: Mapping[str, str], home: Path) -> int:
    if not request.json:
        console.show("check  settings, model, dataset, output folder", sys.stderr)
    job = plan.prepare(request.flags, environ, home, request.problems, fetch=True)
    if job.problems:
        from sdlaunch.supervise import failure_report
        from sdlaunch.supervise.terminal import last_line

        job = failure_report.refuse(job, request.verb)
        if request.json:
            console.show(display.check_json(job), sys.stderr)
        else:
            last = last_line.of_refused(OutputLayout(job.output), job.problems)
            console.show(f"{display.check(job)}\n{redact(last, job.secrets)}", sys.stderr)
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

    job = export.prepare(request.arguments, request.flags, environ, home)
    _refuse(request.problems)
    return export.run(job, environ, home)


def _convert(request: Request, environ: Mapping[str, str], home: Path) -> int:
    from sdlaunch.verbs import convert

    remedy = "Write a command after --, as in: convert -- accelerate launch train_dreambooth.py …"
    _refuse(_problems_without_settings(request, remedy))
    return convert.run(request.operand, request.words)


def _generate(request: Request, environ: Mapping[str, str], home: Path) -> int:
    from sdlaunch.verbs import generate

    remedy = "Write its flags after generate, as in: generate MODEL --prompts TEXT; see generate --help."
    _refuse(_problems_without_settings(request, remedy))
    return generate.run(request.words, environ, home)


def _publish(request: Request, environ: Mapping[str, str], home: Path) -> int:
    from sdlaunch.publish import publish

    _refuse(request.problems)
    return publish.on_request(request.arguments, request.flags, environ, home)


def _init(request: Request, environ: Mapping[str, str], home: Path) -> int:
    from sdlaunch.verbs import init

    _refuse(request.problems)
    ask = init.in_terminal if sys.stdin.isatty() and sys.stderr.isatty() else None
    text = init.run(init.prepare(request.arguments, request.flags, environ, home, ask))
    console.show(redact(text, secrets_of(environ)), sys.stdout)
    return 0


def _doctor(request: Request, environ: Mapping[str, str], home: Path) -> int:
    from sdlaunch.verbs import doctor

    refused = _problems_without_settings(request, "doctor takes no settings: leave them out.")
    diagnosis = doctor.Diagnosis({}, refused) if refused else doctor.examine(home, environ)
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


def _problems_without_settings(request: Request, remedy: str) -> tuple[Problem, ...]:
    """What is wrong with the words after a verb that takes no settings."""
    if not request.flags:
        return request.problems
    found = f"{request.verb} with {', '.join(name for name, _ in request.flags)}"
    return (*request.problems, bad_setting("command line", found, remedy))


def _refuse(problems: Sequence[Problem]) -> None:
    """Raises JobError if there are any."""
    if problems:
        raise JobError(problems)


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
    "generate": Verb(
        _generate,
        "generate images from a result, step checkpoints or any model: MODEL --prompts TEXT --output FOLDER; "
        "generate --help lists its flags",
        passes_on=True,
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
