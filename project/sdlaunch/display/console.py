"""A process in any surroundings (streams closed, another locale, no reader, its folder deleted) that ends without a
traceback.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

from sdjob.exit_codes import ExitCode
from sdlaunch import limits, packages


def prepare() -> None:
    """Make standard output and error ready for any text, and paths usable. To be called before a file is opened."""
    # A closed one, as after `>&-`: the next file that is opened would get its descriptor.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):  # whatever the locale of the image, and the bytes in a name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    os.umask(os.umask(0o077) & 0o077)  # the user can open what the job makes, whatever the umask is
    # Those of libraries are for their authors, and PYTHONWARNINGS=error would end the launcher.
    warnings.simplefilter("ignore")
    try:
        Path.cwd()
    except FileNotFoundError:  # deleted meanwhile
        os.chdir("/")


def show(text: str, stream: TextIO) -> None:
    """Print a text to a reader that may have gone, as in `plan | head`: that is not an error."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def guarded(main: Callable[[], int]) -> int:
    """The exit code of `main`; an exception becomes one message on stderr instead of a traceback."""
    try:
        return main()
    except KeyboardInterrupt:
        text, code = (
            "stopped: what is written so far is kept; the same command starts again",
            ExitCode.STOPPED,
        )
    except ModuleNotFoundError as error:
        name = str(error.name)
        lacking = sorted({*packages.missing(packages.PACKAGES), packages.PACKAGES.get(name, name)})
        text, code = str(packages.not_installed(lacking)), ExitCode.NO_HARDWARE
    except Exception as error:
        if problem := limits.problem_of(error):
            show(str(problem), sys.stderr)
            return int(problem.code)
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = (
            f"launcher: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})\n"
            "    → This is a bug: please report it with this line and the output of `plan`."
        )
        code = ExitCode.TRAINING_FAILED
    show(text, sys.stderr)
    return int(code)


def leave(code: int) -> NoReturn:
    """End the process at once: a thread that reads from a mount that hangs would keep it alive."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
