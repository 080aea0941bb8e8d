"""A job without progress: noticed by its heartbeats, explained by the stacks of its ranks.

The limit is `hang_timeout` in sdlaunch/settings/options.py; sdtrain/runtime/heartbeat.py writes the heartbeats.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdjob import protocol, reading
from sdjob.protocol import Heartbeat
from sdlaunch.supervise import processes

_PATIENCE = 5.0  # seconds for the ranks to write their stacks
_NO_STACKS = "gave no stacks"
_LOOK_EVERY = 5.0  # seconds at most
_FRAME = re.compile(r'File "([^"]+)", line (\d+) in (\S+)')
_WAITING = re.compile(r"torch/distributed/(?!checkpoint/)")  # there it writes and reads files
_CALLS_OPERATORS = "torch/_ops.py"
# Where FSDP's backward pass waits below any line of Python, and the worker for what it has sent before.
_WAITING_FUNCTIONS = ("_engine_run_backward", protocol.WAIT_FOR_RANKS)


@dataclass(frozen=True)
class Hang:
    """Seconds without progress, and what each rank of this node was doing."""

    seconds: float
    stacks: Mapping[int, str]
    several: bool = True  # ranks in the job, on all nodes: only then does a rank wait for others

    def innermost(self) -> list[str]:
        """The innermost frame of each rank, in a line."""
        return [f"rank {rank}: {_innermost(text)}" for rank, text in sorted(self.stacks.items())]

    def culprit(self) -> int | None:
        """The only rank that does not answer, or else the only one that does not wait for the others."""
        silent = [rank for rank, text in self.stacks.items() if text.startswith(_NO_STACKS)]
        if silent:
            return silent[0] if len(silent) == 1 else None
        busy = [rank for rank, text in self.stacks.items() if not (self.several and _waits(text))]
        return busy[0] if len(busy) == 1 else None

    def text(self) -> str:
        return "\n".join(f"--- rank {rank}\n{text.rstrip()}\n" for rank, text in sorted(self.stacks.items()))


@dataclass
class Signs:
    """When the ranks last gave a sign of life, by the clock of this process: that of their files may be set."""

    notes: Path
    at: float = field(default_factory=time.monotonic)
    _looked: float = field(default_factory=time.monotonic)
    _newest: float = 0.0

    def silence(self, now: float) -> float:
        """Seconds since the last sign, which may have come after the last call; `now`: time.monotonic()."""
        if (newest := Heartbeat.last(self.notes)) != self._newest:
            age = time.time() - newest
            self.at = now - age if 0 <= age <= now - self._looked else now  # else: a clock was set
            self._newest = newest
        self._looked = now
        return now - self.at


@dataclass
class Watch:
    """Looks for progress of the ranks; `hang` is set when there was none for `timeout` seconds (0: never)."""

    notes: Path
    timeout: float
    world_size: int
    looked: float = field(default_factory=time.monotonic)
    hang: Hang | None = None

    def __post_init__(self) -> None:
        self._signs = Signs(self.notes)

    def restart(self) -> None:
        """Count again from now."""
        self._signs.at = self.looked = time.monotonic()

    def hangs(self) -> bool:
        """Whether the job hangs; checks rarely, since the messages may be on slow storage."""
        now, interval = time.monotonic(), min(_LOOK_EVERY, self.timeout / 10)
        if now - self.looked > interval + max(1.0, self.timeout / 4):
            # The launcher has been paused itself, and its ranks with it: count again.
            self.restart()
        elif self.timeout and now - self.looked >= interval:
            self.looked = now
            silent = self._signs.silence(now)
            if silent > self.timeout:
                self.hang = examine(self.notes, silent, self.world_size)
        return self.hang is not None


def let_others_look() -> None:
    """Leave the ranks alone until other nodes have noticed, and have examined theirs: these fail with the first."""
    time.sleep(_LOOK_EVERY + _PATIENCE)


def examine(notes: Path, seconds: float, world_size: int) -> Hang:
    """Ask every rank for its stacks, and take what they write within a few seconds."""
    ours = {process.pid for process in processes.descendants()}
    ranks = {rank: beat.pid for rank, beat in Heartbeat.read_all(notes).items() if beat.pid in ours}
    for pid in ranks.values():
        with contextlib.suppress(OSError):
            os.kill(pid, protocol.STACKS_SIGNAL)
    until = time.monotonic() + _PATIENCE
    sizes: dict[int, int] = {}
    while time.monotonic() < until:
        before, sizes = sizes, {rank: len(_stacks(notes, rank)) for rank in ranks}
        if sizes == before and all(sizes.values()):  # all have written, and none is still writing
            break
        time.sleep(0.2)
    stacks = {
        rank: _stacks(notes, rank) or f"{_NO_STACKS}; {processes.state(pid)}" for rank, pid in ranks.items()
    }
    return Hang(seconds, stacks, several=world_size > 1)


def _stacks(notes: Path, rank: int) -> str:
    try:
        return reading.content(protocol.stacks_file(notes, rank), reading.MESSAGE).decode(errors="replace")
    except OSError:
        return ""


def _main_thread(text: str) -> str:
    """The part of a dump about the thread that took the signal, which is the main one."""
    match = re.search(r"^Current thread .*?(?=^Thread |^Current thread |\Z)", text, re.MULTILINE | re.DOTALL)
    return match[0] if match else text


def _waits(text: str) -> bool:
    """Whether the main thread waits for other ranks, by its innermost frame: outer ones may only have called it."""
    for path, _, function in _FRAME.findall(_main_thread(text)):
        if not path.endswith(_CALLS_OPERATORS):
            return function in _WAITING_FUNCTIONS or bool(_WAITING.search(path))
    return False


def _innermost(text: str) -> str:
    match = _FRAME.search(_main_thread(text))
    return f"{match[3]} ({Path(match[1]).name}:{match[2]})" if match else text.strip()
