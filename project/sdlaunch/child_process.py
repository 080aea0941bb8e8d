"""Child processes that run Python: their environment, and their end when the launcher ends."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdjob.children.start import ending_with_this
from sdjob.protocol import SAFE_PATH
from sdlaunch.python_variables import without_harmful


def options(argv: Sequence[str], environ: Mapping[str, str], memory: int | None = None) -> dict[str, Any]:
    """Arguments of subprocess.Popen for a program that reads nothing; the thread that starts it must wait for it.

    `memory`: bytes that it may take, and that each of its children may.
    """
    return {
        "args": ending_with_this(argv, memory=memory),
        "env": {**SAFE_PATH, **without_harmful(environ)},
        "stdin": subprocess.DEVNULL,
    }


def call(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run such a program to its end; returns its exit code, after a signal that of a shell."""
    code = subprocess.call(**options(argv, environ))
    return 128 - code if code < 0 else code


def python_path(*folders: Path | str | None) -> str:
    """The variable PYTHONPATH with these folders, or lists of them. An empty one would be the current folder."""
    paths = [path for folder in folders if folder for path in str(folder).split(os.pathsep)]
    return os.pathsep.join(filter(None, paths))
