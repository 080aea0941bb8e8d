"""What a process leaves behind for the launcher when it does not finish: a note of why, as JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from sdjob.problems import Problem

_BEGUN = "begun"


def reason_not_to_try_again(environ: Mapping[str, str] = os.environ) -> int | None:
    """The code with which an earlier attempt of this run ended for a reason that another one cannot fix.

    None: there was no earlier attempt, or it crashed; its note of this rank is then taken back.
    """
    folder = environ.get("SDJOB_NOTES_DIR")
    if not folder or int(environ.get("TORCHELASTIC_RESTART_COUNT", 0)) == 0:
        return None
    for path in sorted(Path(folder).glob("rank-*.json")):
        note = json.loads(path.read_text())
        if note["problems"]:
            return int(note["code"])
    _path(folder, environ).unlink(missing_ok=True)
    return None


def has_begun(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether an earlier attempt of this very run got as far as `begin`.

    torchrun's own count of restarts says less: it grows before anything was begun too, and differs between nodes.
    Without a launcher there is nothing else to ask.
    """
    folder = environ.get("SDJOB_NOTES_DIR")
    if not folder:
        return int(environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    return (Path(folder) / _BEGUN).exists()


def begin(environ: Mapping[str, str] = os.environ) -> None:
    """Leaves word that what an earlier run left is put aside: from here on the output folder is this run's.

    Raises OSError.
    """
    if folder := environ.get("SDJOB_NOTES_DIR"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / _BEGUN).touch()


def _path(folder: str, environ: Mapping[str, str]) -> Path:
    return Path(folder) / f"rank-{environ.get('RANK', 0)}.json"


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
    path = _path(folder, environ)
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(note, indent=1) + "\n")
        temporary.replace(path)
    except OSError:  # the reason for this note may be a full disk
        return False
    return True
