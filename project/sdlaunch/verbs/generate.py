"""`generate`: the worker's command for images, with the Python and the project of the launcher."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdlaunch import child_process

MODULE = "sdtrain.generate"


def run(words: Sequence[str], environ: Mapping[str, str], home: Path) -> int:
    """Pass the words on, and return the exit code; the child ends with the launcher."""
    path = {"PYTHONPATH": child_process.python_path(home / "project", environ.get("PYTHONPATH"))}
    argv = (sys.executable, "-m", MODULE, *words)
    return child_process.call(argv, {**environ, **path})
