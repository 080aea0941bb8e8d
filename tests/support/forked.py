"""The launcher and its ranks as forks of the test, which has imported everything: the same code without the wait.

Each import of the worker takes seconds. Here the launcher is a fork of the test, a stand-in for torchrun a fork
of the launcher, and the ranks are forks of that one: a real tree of processes, with real signals and pipes. What
torchrun itself does is tested with torchrun.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch.distributed.elastic.utils import macros

import entrypoint
from sdlaunch.supervise import supervisor
from sdtrain.__main__ import main as worker

_FAILED = """  rank      : {rank} (local_rank: {rank})
  exitcode  : {code} (pid: {pid})
"""


def launcher(environ: dict[str, str]) -> Callable[[], None]:
    """For Popen(preexec_fn=…): the child becomes the launcher in this environment instead of starting a program."""

    def become() -> None:
        supervisor.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": _popen})  # type: ignore[assignment]
        sys.argv = ["entrypoint.py"]
        _become(entrypoint.start, environ, keep=())

    return become


def _popen(argv: list[str], *, env: dict[str, str], pass_fds: Any, preexec_fn: Any, **options: Any) -> Any:
    def become() -> None:
        preexec_fn()
        _become(lambda: _torchrun(argv), env, keep=pass_fds)

    return subprocess.Popen(argv, pass_fds=pass_fds, preexec_fn=become, **options)


def _become(main: Callable[[], int], environ: dict[str, str], keep: Any) -> None:
    """Run main() in this fork like a separate program, and exit."""
    code = 99
    try:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(signum, signal.SIG_DFL)
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            if int(name) > 2 and int(name) not in keep:
                with contextlib.suppress(OSError):  # that of the listing itself
                    os.close(int(name))
        os.environ.clear()
        os.environ.update(environ)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _torchrun(argv: list[str]) -> int:
    """Run one node's ranks; after a failure restart all of them, at most --max-restarts times."""
    flags = argv[argv.index("sdtrain") + 1 :]
    size = _number(argv, "nproc-per-node")
    restarts = _number(argv, "max-restarts")
    for attempt in range(restarts + 1):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        shared = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared["TORCHELASTIC_RESTART_COUNT"] = attempt
        ranks = [_rank(rank, flags, shared) for rank in range(size)]
        if not (failures := _failures(ranks)):
            return 0
    first, *others = [_FAILED.format(**failure) for failure in failures]
    print("Failures:", *others, "Root Cause (first observed failure):", first, sep="\n", flush=True)
    return 1


def _number(argv: list[str], flag: str) -> int:
    found = [int(match[1]) for word in argv if (match := re.fullmatch(rf"--{flag}=(\d+)", word))]
    return found[0] if found else 0


def _rank(rank: int, flags: list[str], shared: dict[str, Any]) -> int:
    """Start a rank whose lines go to standard output with its prefix; returns its process id."""
    ours, theirs = os.pipe()
    if pid := os.fork():
        os.close(theirs)
        threading.Thread(target=_tee, args=(rank, ours), daemon=True).start()
        return pid
    os.setsid()
    os.dup2(theirs, 1)
    os.dup2(theirs, 2)
    values = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
    own = macros.substitute(flags, str(rank))
    # With a reader left in itself a rank is not ended by a broken pipe: with torchrun it writes to a file.
    _become(lambda: worker(own), {**os.environ, **values}, keep=(ours,))
    raise AssertionError("never reached")


def _tee(rank: int, descriptor: int) -> None:
    with os.fdopen(descriptor, "rb") as pipe:
        for line in pipe:
            os.write(1, b"[rank %d] " % rank + line)


def _failures(ranks: list[int]) -> list[dict[str, int]]:
    """Wait for all ranks, and end them once one has failed; returns the failures of the poll that saw the first."""
    failures: list[dict[str, int]] = []
    left = list(ranks)
    while left and not failures:
        time.sleep(0.01)
        failures = [failure for pid in list(left) if (failure := _ended(pid, ranks, left))]
    for pid in left:
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 30
    while left:
        time.sleep(0.01)
        for pid in list(left):
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
            _ended(pid, ranks, left)
    return failures


def _ended(pid: int, ranks: list[int], left: list[int]) -> dict[str, int] | None:
    """Take a process that has ended from those that are left; returns its failure, if it failed."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        return None
    left.remove(pid)
    return (
        {"rank": ranks.index(pid), "code": os.waitstatus_to_exitcode(status), "pid": pid} if status else None
    )
