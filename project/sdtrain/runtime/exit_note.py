"""The exit note that a worker leaves for the launcher, and what an earlier attempt left for this one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

from sdjob import protocol
from sdjob.problems import Problem
from sdjob.protocol import ExitNote, Heartbeat
from sdjob.redact import redact, secrets_of


def reason_not_to_retry(environ: Mapping[str, str] = os.environ) -> int | None:
    """The exit code of an earlier attempt of this run, if another attempt would end in the same way.

    None: this is the first attempt, or the earlier one crashed; this rank's note of it is then removed.
    """
    notes = protocol.notes_folder(environ)
    if not notes or _restarts(environ) == 0:
        return None
    for note in ExitNote.read_all(notes):
        if note.problems:
            return note.code
    ExitNote.remove(notes, rank(environ))
    return None


def has_started(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether an earlier attempt of this run called `mark_started`.

    torchrun's count of restarts is not enough: it also grows before that, and differs between nodes. Without a
    launcher there is nothing else.
    """
    notes = protocol.notes_folder(environ)
    return protocol.has_started(notes) if notes else _restarts(environ) > 0


def mark_started(environ: Mapping[str, str] = os.environ) -> None:
    """Mark the output folder as owned by this run after moving an earlier run's files away. Raises OSError."""
    if notes := protocol.notes_folder(environ):
        protocol.mark_started(notes)


def leave(
    code: int,
    *,
    step: int | None = None,
    problems: Iterable[Problem] = (),
    error: str = "",
    traceback: str = "",
    environ: Mapping[str, str] = os.environ,
) -> bool:
    """Write this rank's exit note, without secrets; `step`: that of its heartbeat, unless given.

    False: there is no launcher, or the note cannot be written.
    """
    notes = protocol.notes_folder(environ)
    if not notes:
        return False
    heartbeat = Heartbeat.read(notes, rank(environ))
    if step is None and heartbeat:
        step = heartbeat.step
    secrets = secrets_of(environ)
    found = tuple(replace(problem, found=redact(problem.found, secrets)) for problem in problems)
    error, traceback = redact(error, secrets), redact(traceback, secrets)
    note = ExitNote(rank(environ), int(code), step, problems=found, error=error, traceback=traceback)
    try:
        note.write(notes)
    except OSError:  # a full disk may be the reason for this note
        return False
    return True


def rank(environ: Mapping[str, str]) -> int:
    """The rank that torchrun gave to this process."""
    return int(environ.get("RANK", 0))


def _restarts(environ: Mapping[str, str]) -> int:
    return int(environ.get("TORCHELASTIC_RESTART_COUNT", 0))
