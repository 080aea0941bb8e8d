"""A forked job that waits in a phase until the test has done to it what it does.

The function of the phase is replaced in the fork, so the program itself has no hooks. Each process that arrives writes
its process id into the folder and waits until the file that arms the breakpoint is removed.
"""

import importlib
import inspect
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL = 0.01  # seconds
PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Place:
    """A call of a function, or the item of a generator, at which to wait: "module:function", per process."""

    function: str
    call: int = 1


class Breakpoint:
    """Armed until `release`; `set` is for the fork, all else for the test."""

    def __init__(self, folder: Path) -> None:
        self._armed = folder / "armed"
        self._reached = folder / "reached"
        self._reached.mkdir(parents=True, exist_ok=True)
        self._armed.touch()

    def set(self, place: Place) -> None:
        """Replace the function of this place."""
        module, _, name = place.function.partition(":")
        owner = importlib.import_module(module)
        setattr(owner, name, self._replacement(getattr(owner, name), place.call))

    def wait(self, alive: Callable[[], bool]) -> int:
        """Wait for a process to arrive; returns its process id, the lowest of several."""
        until = time.monotonic() + PATIENCE
        while not (pids := list(self._reached.iterdir())):
            assert alive(), "the job ended before it reached the phase"
            assert time.monotonic() < until, "the job did not reach the phase"
            time.sleep(POLL)
        return min(int(path.name) for path in pids)

    def release(self) -> None:
        """Let all processes run on."""
        self._armed.unlink(missing_ok=True)

    def _replacement(self, original: Callable[..., Any], call: int) -> Callable[..., Any]:
        calls = itertools.count(1)

        def items(*arguments: Any, **named: Any) -> Iterator[Any]:
            for item in original(*arguments, **named):
                self._pass(next(calls) == call)
                yield item

        def function(*arguments: Any, **named: Any) -> Any:
            self._pass(next(calls) == call)
            return original(*arguments, **named)

        return items if inspect.isgeneratorfunction(original) else function

    def _pass(self, here: bool) -> None:
        if here and self._armed.exists():
            (self._reached / str(os.getpid())).touch()
            while self._armed.exists():
                time.sleep(POLL)
