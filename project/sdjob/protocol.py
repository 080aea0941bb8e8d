"""What launcher and worker say to each other: variables, files, signals, pipes, and marks in the worker's output.

The messages of a node are in one folder, `/output/run/notes-<node>`, and go away when it ends:

    alive-<rank>         Heartbeat: worker → launcher; the file's time is the sign of life, so `touch` is one too
    rank-<rank>.json     ExitNote: worker → launcher, and → the next attempt of the worker
    stacks-of-rank-<r>   stacks of all threads: worker → launcher, on STACKS_SIGNAL
    started              worker → the next attempt: the output folder belongs to this run

`/output/run/stop-<node>` asks the workers of the node to save and exit. A damaged or foreign message reads as None.

Standard output and error of a worker go to the launcher through a named pipe, `<local rank>` in a folder that only the
launcher's user can enter; the first line introduces the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from sdjob import reading, writing
from sdjob.problems import Problem

Message = TypeVar("Message")

# Variables of the worker.
_NOTES_DIR = "SDJOB_NOTES_DIR"
_STOP_FILE = "SDJOB_STOP_FILE"
_LAUNCHER_PID = "SDJOB_LAUNCHER_PID"
_PIPES_DIR = "SDJOB_PIPES_DIR"
DEVICE_TIMEOUT = "SDJOB_DEVICE_TIMEOUT"  # seconds after which a collective call between devices fails

# Python does not look for modules in the current folder, or in that of a script, where this is set (from 3.11 on). The
# value is the launcher's own: a user's script imports from its folder, unless the user has set another one.
SAFE_PATH = {"PYTHONSAFEPATH": "sdjob"}

# Files: below /output/run, and in the folder of notes.
_NOTES_OF_NODE = "notes-{}"
_STOP_OF_NODE = "stop-{}"
_EXIT_NOTE = "rank-{}.json"
_HEARTBEAT = "alive-{}"
_STACKS = "stacks-of-rank-{}"
_STARTED = "started"

_INTRODUCTION = re.compile(rb"\0rank (\d+), attempt (\d+)")
_PROGRESS_END = "\t"  # of a progress line: invisible
_HEARTBEAT_BYTES = 400
_NOTE_CHARACTERS = 100
_MOST = 10**11  # of what is counted, and of seconds since 1970, for which there is a date
_CODES = 256  # of processes

TRAINING = "train"  # the stage that counts optimizer steps
WAIT_FOR_RANKS = "wait_for_ranks"  # the function, in the stacks of a worker, that waits for other ranks
STACKS_SIGNAL = signal.SIGURG  # by default ignored; no scheduler or terminal sends it
# Requests to stop, to the launcher and to a worker: what people, terminals, platforms and schedulers send.
STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
# Schedulers signal a job several times, and a process directly and through its group, shell or parent: that is one
# request. Only a person insists: by SIGINT, repeated after at least so many seconds.
ONE_REQUEST = 3.0


@dataclass(frozen=True)
class Channel:
    """The folder of messages and the stop file of one node."""

    notes: Path
    stop_file: Path

    @classmethod
    def of_node(cls, run: Path, node: int) -> Channel:
        """`run`: the folder of that name below /output."""
        return cls(run / _NOTES_OF_NODE.format(node), run / _STOP_OF_NODE.format(node))

    def environment(self) -> dict[str, str]:
        """The variables that lead workers here."""
        return {_STOP_FILE: str(self.stop_file), _NOTES_DIR: str(self.notes)}

    def belongs_to(self, environ: Mapping[str, str]) -> bool:
        """Whether a process with these variables works for a start in this folder."""
        notes = notes_folder(environ)
        return (
            notes is not None and notes.name == self.notes.name and _is_same(notes.parent, self.notes.parent)
        )

    def clear(self) -> None:
        """Remove the messages of an earlier run. Raises OSError."""
        writing.discard(self.notes)  # on a network mount an empty folder may remain
        _make(self.notes)
        for path in self.notes.glob("[!.]*"):
            path.unlink()
        self.stop_file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove every trace. Raises OSError."""
        self.stop_file.unlink(missing_ok=True)
        writing.remove(self.notes)


def insists(signals: Sequence[tuple[int, float]]) -> bool:
    """Whether signals, each with its time, are more than one request: SIGINT, repeated after `ONE_REQUEST`."""
    times = [at for number, at in signals if number == signal.SIGINT]
    return bool(times) and times[-1] - times[0] > ONE_REQUEST


def launcher_variables(pipes: Path) -> dict[str, str]:
    """For workers of this process: as long as it lives, they have a launcher, which reads from pipes in this folder."""
    return {_LAUNCHER_PID: str(os.getpid()), _PIPES_DIR: str(pipes)}


def launcher_pid(environ: Mapping[str, str]) -> int | None:
    """The process id of the launcher; None: there is none."""
    pid = environ.get(_LAUNCHER_PID, "")
    return int(pid) if pid.isdecimal() else None


def notes_folder(environ: Mapping[str, str]) -> Path | None:
    """Where a worker leaves its messages; None: it has no launcher."""
    folder = environ.get(_NOTES_DIR)
    return Path(folder) if folder else None


def stop_file(environ: Mapping[str, str]) -> Path | None:
    """The file whose presence asks a worker to save and exit; None: it has no launcher."""
    path = environ.get(_STOP_FILE)
    return Path(path) if path else None


def pipe(folder: Path, local_rank: int) -> Path:
    return folder / str(local_rank)


def own_pipe(environ: Mapping[str, str]) -> Path | None:
    """Where a worker sends its output; None: it has no launcher."""
    folder, local_rank = environ.get(_PIPES_DIR), environ.get("LOCAL_RANK", "")
    return pipe(Path(folder), int(local_rank)) if folder and local_rank.isdecimal() else None


def introduction(rank: int, attempt: int) -> bytes:
    """The first line of a worker; `attempt`: how often torchrun has restarted the workers."""
    return b"\0rank %d, attempt %d\n" % (rank, attempt)


def introduced(line: bytes) -> tuple[int, int] | None:
    """(rank, attempt) if this line introduces a worker."""
    match = _INTRODUCTION.fullmatch(line)
    return (int(match[1]), int(match[2])) if match else None


def stacks_file(notes: Path, rank: int) -> Path:
    return notes / _STACKS.format(rank)


def open_stacks(notes: Path, rank: int) -> IO[str]:
    """The empty file of a worker for its stacks. Raises OSError."""
    path = stacks_file(notes, rank)
    return os.fdopen(writing.opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w")


def mark_started(notes: Path) -> None:
    """Leave word that the output folder belongs to this run. Raises OSError."""
    _make(notes)
    writing.touch(notes / _STARTED)


def has_started(notes: Path) -> bool:
    return (notes / _STARTED).exists()


@dataclass(frozen=True)
class ExitNote:
    """Why a worker ended, if it did not finish."""

    rank: int
    code: int
    step: int | None = None
    time: float = field(default_factory=time.time)
    problems: tuple[Problem, ...] = ()
    error: str = ""
    traceback: str = ""

    def write(self, notes: Path) -> None:
        """Raises OSError."""
        _make(notes)
        writing.write_text(
            notes / _EXIT_NOTE.format(self.rank), json.dumps(asdict(self), indent=1) + "\n", private=True
        )

    @classmethod
    def read_all(cls, notes: Path) -> tuple[ExitNote, ...]:
        paths = (notes / _EXIT_NOTE.format(rank) for rank in _ranks(notes, _EXIT_NOTE))
        return tuple(note for path in paths if (note := _read(cls, path)) and 0 <= note.code < _CODES)

    @staticmethod
    def remove(notes: Path, rank: int) -> None:
        """Raises OSError."""
        (notes / _EXIT_NOTE.format(rank)).unlink(missing_ok=True)


@dataclass(frozen=True)
class Heartbeat:
    """How far a worker is: its process id, its stage, the last optimizer step, and how much of the stage is done."""

    pid: int
    stage: str
    step: int | None = None
    done: int | None = None  # of what the stage counts
    total: int | None = None
    seconds_left: float | None = None  # of the stage, when this was written
    note: str = ""  # what else is measured, such as losses

    def write(self, notes: Path, rank: int) -> None:
        """Overwrite the file in place, which renews its time, costs little and needs no space. Raises OSError."""
        values = {**asdict(self), "note": self.note[:_NOTE_CHARACTERS]}
        text = json.dumps(values).encode().ljust(_HEARTBEAT_BYTES)
        writing.refuse_links(notes, notes.parent.parent)
        descriptor = writing.opened(_heartbeat(notes, rank), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)

    @classmethod
    def read(cls, notes: Path, rank: int) -> Heartbeat | None:
        return _read(cls, _heartbeat(notes, rank))

    @classmethod
    def read_all(cls, notes: Path) -> dict[int, Heartbeat]:
        """By rank."""
        found = {rank: cls.read(notes, rank) for rank in _ranks(notes, _HEARTBEAT)}
        return {rank: heartbeat for rank, heartbeat in found.items() if heartbeat}

    @staticmethod
    def last(notes: Path) -> float:
        """The time of the newest one, readable or not; 0: no rank has sent one."""
        times = [0.0]
        for rank in _ranks(notes, _HEARTBEAT):
            with contextlib.suppress(OSError):
                times.append(_heartbeat(notes, rank).stat().st_mtime)
        return max(times)


@dataclass(frozen=True)
class OutputLine:
    """A line in the log of a node; `rank` is None for lines of torchrun."""

    rank: int | None
    text: str
    is_progress: bool = False  # a line that the next one may replace on a terminal

    @classmethod
    def of(cls, rank: int | None, text: str) -> OutputLine:
        """A line as it was printed."""
        return cls(rank, text.removesuffix(_PROGRESS_END), text.endswith(_PROGRESS_END))

    def __str__(self) -> str:
        return self.text if self.rank is None else f"[rank {self.rank}] {self.text}"


def progress_line(text: str) -> str:
    """A worker's line that the launcher shows as progress."""
    return text + _PROGRESS_END


def _make(notes: Path) -> None:
    """Make the folder of notes, which is /output/run/notes-N. Raises OSError."""
    writing.make_folder(notes, notes.parent.parent)


def _is_same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False


def _heartbeat(notes: Path, rank: int) -> Path:
    return notes / _HEARTBEAT.format(rank)


def _ranks(notes: Path, name: str) -> list[int]:
    """The ranks with a file of this name."""
    before, after = name.split("{}")
    try:
        paths = list(notes.glob(name.format("*")))
    except OSError:  # the storage fails
        return []
    ranks = [path.name.removeprefix(before).removesuffix(after) for path in paths]
    return sorted(int(rank) for rank in ranks if rank.isdecimal())


def _read(message: type[Message], path: Path) -> Message | None:
    try:
        found = reading.typed(message, reading.json_of(reading.content(path, reading.MESSAGE)))
    except (OSError, ValueError):
        return None
    numbers = (each for each in vars(found).values() if isinstance(each, (int, float)))
    return found if all(abs(number) < _MOST for number in numbers) else None
