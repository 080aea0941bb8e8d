"""The launcher and its ranks as forks of the test, which has imported everything: the same code without the wait.

Each import of the worker takes seconds. Here the launcher is a fork of the test, torchrun a fork of the launcher, and
the ranks are forks of torchrun: the real tree of processes, with real signals and pipes.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
from torch.distributed.run import main as torchrun
from tqdm import tqdm

import entrypoint
import sdtrain.run  # noqa: F401  (what the worker imports once its settings are valid)
from sdjob import protocol, reading
from sdjob.children import start
from sdjob.output.starts import Start
from sdlaunch.supervise import processes
from sdlaunch.supervise.lock import Holder
from sdtrain.__main__ import main as worker


def launcher(environ: dict[str, str], before: Callable[[], None] = lambda: None) -> Callable[[], None]:
    """For Popen(preexec_fn=…): the child becomes the launcher in this environment instead of starting a program.

    It calls `before` first, which may replace what it and all below it call.
    """
    # pydantic makes its readers now: a fork while a thread of the launcher does so would wait for that thread forever.
    for kind in (protocol.Heartbeat, protocol.ExitNote, list[Start], Holder):
        with contextlib.suppress(ValueError):
            reading.typed(kind, None)

    def become() -> None:
        before()
        processes.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": _popen})  # type: ignore[assignment]
        sys.argv = ["entrypoint.py"]
        _become(entrypoint.start, environ, keep=())

    return become


def _popen(argv: list[str], *, env: dict[str, str], pass_fds: Any, **options: Any) -> Any:
    def become() -> None:
        os.execvp = lambda _, words: _become(lambda: _torchrun(words), env, keep=pass_fds)
        sys.argv = argv[argv.index(start.__file__) :]
        start.main()

    return subprocess.Popen(argv, pass_fds=pass_fds, preexec_fn=become, **options)


def _become(main: Callable[[], int], environ: dict[str, str], keep: Any) -> None:
    """Run main() in this fork like a separate program, and exit."""
    code = 1
    try:
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            if int(name) > 2 and int(name) not in keep:
                with contextlib.suppress(OSError):  # that of the listing itself
                    os.close(int(name))
        # Its own is shared by all forks of the test: one that is killed while it holds it would stop the others.
        tqdm.set_lock(threading.RLock())
        os.environ.clear()
        os.environ.update(environ)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        code = main()
    except KeyboardInterrupt:  # as Python ends
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _torchrun(argv: list[str]) -> int:
    """torchrun, whose ranks are forks too."""
    subprocess_handler.Popen = _rank
    try:
        torchrun(argv[argv.index("torch.distributed.run") + 1 :])
    except (ChildFailedError, SignalException):
        traceback.print_exc()
        return 1
    return 0


def _rank(args: Any, env: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
    flags = [str(word) for word in args[args.index("sdtrain") + 1 :]]
    return subprocess.Popen(
        args, env=env, preexec_fn=lambda: _become(lambda: worker(flags), env, keep=()), **options
    )
