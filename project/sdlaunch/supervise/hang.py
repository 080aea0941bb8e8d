"""A job that has come to a standstill: noticed by its signs of life, explained by the stacks of its ranks."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdlaunch.supervise import processes

_PATIENCE = 5.0  # seconds for the ranks to write their stacks
_NO_STACKS = "gave no stacks"


@dataclass(frozen=True)
class Hang:
    """For how long nothing had gone forward, and what each rank of this node was doing."""

    seconds: float
    stacks: Mapping[int, str]

    def places(self) -> list[str]:
        """The innermost place of each rank, in a line."""
        return [f"rank {rank}: {_innermost(text)}" for rank, text in sorted(self.stacks.items())]

    def culprit(self) -> int | None:
        """The one rank that does not answer, or else does not wait for the others, if there is just one."""
        silent = [rank for rank, text in self.stacks.items() if text.startswith(_NO_STACKS)]
        if silent:
            return silent[0] if len(silent) == 1 else None
        waiting = {rank: "torch/distributed/" in _main_thread(text) for rank, text in self.stacks.items()}
        free = [rank for rank, waits in waiting.items() if not waits]
        return free[0] if len(free) == 1 else None

    def text(self) -> str:
        return "\n".join(f"--- rank {rank}\n{text.rstrip()}\n" for rank, text in sorted(self.stacks.items()))


def last_progress(notes: Path, started: float) -> float:
    """When a rank of this node last went forward; the start, as long as none has."""
    times = [started]
    with contextlib.suppress(OSError):
        for path in notes.glob("alive-*"):
            with contextlib.suppress(OSError):
                times.append(path.stat().st_mtime)
    return max(times)


def examine(notes: Path, seconds: float) -> Hang:
    """Asks every rank for its stacks, and takes what they have written within a few seconds."""
    ours = set(processes.descendants(os.getpid()))
    ranks = {rank: pid for rank, pid in _ranks(notes).items() if pid in ours}
    for pid in ranks.values():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGUSR1)
    until = time.monotonic() + _PATIENCE
    sizes: dict[int, int] = {}
    while time.monotonic() < until:
        before, sizes = sizes, {rank: len(_stacks(notes, rank)) for rank in ranks}
        if sizes == before and all(sizes.values()):  # all have written, and none is still writing
            break
        time.sleep(0.2)
    return Hang(
        seconds,
        {
            rank: _stacks(notes, rank) or f"{_NO_STACKS}; {processes.state(pid)}"
            for rank, pid in ranks.items()
        },
    )


def _ranks(notes: Path) -> dict[int, int]:
    """Rank → process id, of all that have announced themselves."""
    found = {}
    for path in notes.glob("alive-*"):
        with contextlib.suppress(OSError, ValueError):
            found[int(path.name.removeprefix("alive-"))] = int(path.read_text())
    return found


def _stacks(notes: Path, rank: int) -> str:
    try:
        return (notes / f"stacks-{rank}.txt").read_text(errors="replace")
    except OSError:
        return ""


def _main_thread(text: str) -> str:
    """The part of a dump that tells of the thread that took the signal, which is the main one."""
    match = re.search(r"^Current thread .*?(?=^Thread |^Current thread |\Z)", text, re.MULTILINE | re.DOTALL)
    return match[0] if match else text


def _innermost(text: str) -> str:
    match = re.search(r'File "([^"]+)", line (\d+) in (\S+)', _main_thread(text))
    return f"{match[3]} ({Path(match[1]).name}:{match[2]})" if match else text.strip()
