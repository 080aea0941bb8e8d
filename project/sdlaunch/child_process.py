"""Child processes that run Python: their environment, and their end when the launcher ends."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjob.bounded import ends_with_parent
from sdjob.protocol import SAFE_PATH
from sdlaunch.python_variables import without_harmful


def options(environ: Mapping[str, str], memory: int | None = None) -> dict[str, Any]:
    """Arguments of subprocess.Popen for a child that reads nothing; the thread that starts it must wait for it.

    `memory`: bytes that it may take, and that each of its children may.
    """
    return {
        "env": {**SAFE_PATH, **without_harmful(environ)},
        "stdin": subprocess.DEVNULL,
        "preexec_fn": ends_with_parent(memory=memory),
    }


def python_path(*folders: Path | str | None) -> str:
    """The variable PYTHONPATH with these folders, or lists of them. An empty one would be the current folder."""
    paths = [path for folder in folders if folder for path in str(folder).split(os.pathsep)]
    return os.pathsep.join(filter(None, paths))
