"""What a process leaves behind for the launcher when it does not finish: a note of why, as JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from sdjob.problem import Problem


def leave(
    code: int,
    *,
    step: int | None = None,
    problems: Iterable[Problem] = (),
    error: str = "",
    traceback: str = "",
    environ: Mapping[str, str] = os.environ,
) -> bool:
    """Writes rank-<r>.json into SDJOB_NOTES_DIR; False: no launcher asked for notes, or it cannot be written."""
    folder = environ.get("SDJOB_NOTES_DIR")
    if not folder:
        return False
    rank = int(environ.get("RANK", 0))
    note = {
        "rank": rank,
        "code": code,
        "step": step,
        "time": time.time(),
        "problems": [problem.to_dict() for problem in problems],
        "error": error,
        "traceback": traceback,
    }
    path = Path(folder) / f"rank-{rank}.json"
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(note, indent=1) + "\n")
        temporary.replace(path)
    except OSError:  # the reason for this note may be a full disk
        return False
    return True
