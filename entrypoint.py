"""Start of the launcher: paths and signals. What it does is in sdlaunch.cli.

`bash train.sh` calls this; `bash train.sh --help` lists verbs and settings.
"""

# ruff: noqa: E402 - the first thing to do is to say where imports come from
from __future__ import annotations

import os
import sys


def _import_only_what_is_installed() -> None:
    """Have no file next to this one, or in the current folder, replace a module of Python's."""
    unwanted = {"", os.path.dirname(os.path.realpath(__file__))}  # noqa: PTH120 - nothing is imported yet
    listed = os.environ.get("PYTHONPATH")
    if listed and "" in listed.split(os.pathsep) and os.path.isdir("."):  # noqa: PTH112
        unwanted.add(os.getcwd())  # noqa: PTH109
    sys.path[:] = [path for path in sys.path if path not in unwanted]


if __name__ == "__main__":
    _import_only_what_is_installed()

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parent
sys.path.insert(0, str(HOME / "project"))


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    from sdlaunch import cli

    return cli.main(argv, environ, HOME)


def _on_signals(reaction: Callable[[int, object], object]) -> None:
    from sdjob import protocol

    for signum in protocol.STOP_SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup
            signal.signal(signum, reaction)


def _stop_early(signum: int, frame: object) -> None:
    """Stop the preparation of a job; only a repeated SIGINT ends the process at once."""
    from sdjob import protocol

    received = [(signum, time.monotonic())]

    def _again(number: int, frame: object) -> None:
        received.append((number, time.monotonic()))
        if protocol.insists(received):
            os._exit(128 + number)

    _on_signals(_again)
    raise KeyboardInterrupt(signum)


def start() -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - whatever python3 the image has may start this
        print(f"Python: found {sys.version.split()[0]}\n    → Use Python 3.10 or newer.", file=sys.stderr)
        return 69
    from sdlaunch.display import console

    console.prepare()
    _on_signals(_stop_early)  # PID 1 of a container has no default reaction
    return console.guarded(lambda: main(sys.argv[1:], os.environ))


if __name__ == "__main__":
    code = start()
    from sdlaunch.display import console

    console.leave(code)
