"""The three standard streams, whatever the launcher was started with: closed, in any locale, without a reader."""

from __future__ import annotations

import io
import os
import sys
import traceback
from pathlib import Path
from typing import TextIO


def prepare() -> None:
    """Makes standard output and error ready for any text. To be called before a file is opened."""
    # Closed ones, as after `>&-`: the next file that is opened would take their place.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):  # whatever the locale of the image, and the bytes in a name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def show(text: str, stream: TextIO) -> None:
    """Prints a text for whoever still reads; gone readers, as in `plan | head`, are no error."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def missing_package(error: ModuleNotFoundError) -> str:
    """What to install, for this very Python."""
    package = {"yaml": "pyyaml", "dotenv": "python-dotenv"}.get(str(error.name), str(error.name))
    return (
        f"Python package {package}: not installed for {sys.executable}\n"
        f"    → Install it: {sys.executable} -m pip install {package}"
    )


def bug(error: Exception) -> str:
    """A fault of the launcher in one line, with its place for a report."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"launcher: {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})\n"
        "    → This is a bug: please report it with this line and the output of `plan`."
    )
