"""Child processes that run Python: their environment, and their end when the launcher ends."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjob.bounded import ends_with_parent
from sdlaunch.python_variables import without_harmful


def options(environ: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of subprocess.Popen for a child that reads nothing; the thread that starts it must wait for it."""
    return {
        "env": without_harmful(environ),
        "stdin": subprocess.DEVNULL,
        "preexec_fn": ends_with_parent(),
    }


def python_path(*folders: Path | str | None) -> str:
    """The variable PYTHONPATH with these folders, without those that are None or empty."""
    return os.pathsep.join(str(folder) for folder in folders if folder)
