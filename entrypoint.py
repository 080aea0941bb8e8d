"""Fine-tunes Stable Diffusion: reads the settings, checks the job, then shows the plan or trains.

`bash train.sh` calls this; `bash train.sh --help` lists verbs and settings.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parent
sys.path.insert(0, str(HOME / "project"))

from sdjob import protocol  # noqa: E402 - needs nothing but Python


class StoppedEarly(BaseException):
    """A signal before training began."""


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Read → check → plan → run; returns the exit code."""
    from sdlaunch import cli, plan
    from sdlaunch.display import console
    from sdlaunch.display import text as display
    from sdlaunch.display.redact import redact
    from sdlaunch.emit import task

    request = cli.parse(argv)
    if request.verb == "help":
        console.show(cli.help_text(), sys.stdout)
        return 0
    if request.verb == "doctor" and not request.problems:
        from sdlaunch.verbs import doctor

        return doctor.run(HOME, environ, as_json=request.json)
    job = plan.prepare(
        request.flags,
        environ,
        HOME,
        request.problems,
        fetch=request.verb == "run",
        assigns_ranks=request.assigns_ranks,
    )
    if request.verb == "run" and not job.problems:
        from sdlaunch.supervise import supervisor

        console.show(display.start(job), sys.stdout)
        return supervisor.run(job, environ)
    if request.verb == "emit" and job.launch:
        console.show(redact(task.render(job, HOME, request.target, request.kind), job.secrets), sys.stdout)
        return 0
    if request.verb != "emit":
        from sdlaunch.supervise import refusal

        job = refusal.complete(job, request.verb)
    dim = sys.stdout.isatty() and "NO_COLOR" not in environ
    text = display.report(job, request.verb, as_json=request.json, dim=dim)
    console.show(text, sys.stderr if request.verb in ("run", "emit") else sys.stdout)
    return job.code


def _on_signals(reaction: Callable[[int, object], object]) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup
            signal.signal(signum, reaction)


def _stop_early(signum: int, frame: object) -> None:
    until = time.monotonic() + protocol.ONE_REQUEST
    _on_signals(lambda number, _: time.monotonic() > until and os._exit(128 + number))  # somebody insists
    raise StoppedEarly(signum)


def start() -> int:
    """main() with everything around it that must not end in a traceback."""
    if sys.version_info < (3, 10):  # noqa: UP036 - whatever python3 the image has may start this
        print(f"Python: found {sys.version.split()[0]}\n    → Use Python 3.10 or newer.", file=sys.stderr)
        return 69
    from sdlaunch.display import console

    console.prepare()
    _on_signals(_stop_early)  # PID 1 of a container has no default reaction
    try:
        return main(sys.argv[1:], os.environ)
    except StoppedEarly:
        console.show("stopped before training began; start again at any time", sys.stderr)
        return 75
    except ModuleNotFoundError as error:
        console.show(console.missing_package(error), sys.stderr)
        return 69
    except Exception as error:
        console.show(console.bug(error), sys.stderr)
        return 70


if __name__ == "__main__":
    code = int(start())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)  # a thread that reads from a hung mount would keep the process
