"""Bounded work: threads for mounts that may never answer, and short-lived processes for what only torch knows."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from sdjob import reading
from sdjob.exit_codes import ExitCode
from sdjob.problems import JobError, Problem, bad_input
from sdlaunch import child_process

Result = TypeVar("Result", covariant=True)

_WITH_DEVICES = 32 << 30  # bytes, which drivers of many devices reserve rather than use


class NoAnswer(Exception):
    """An action has taken longer than allowed, or a process gave no answer for this reason."""


class Task(Generic[Result]):
    """An action in a thread that does not keep the process alive, so that it may be abandoned."""

    def __init__(self, action: Callable[[], Result]) -> None:
        self._outcome: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()
        self._action = action
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        try:
            self._outcome.put((self._action(), None))
        except BaseException as error:  # raised again by `result`
            self._outcome.put((None, error))

    def result(self, until: float) -> Result:
        """What the action returned or raised; raises NoAnswer if it is not done by then (time.monotonic())."""
        try:
            value, error = self._outcome.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise NoAnswer from None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # None only where Result allows it


def outcome(
    task: Task[Result],
    until: float,
    subject: str,
    path: Path | str,
    timeout: float,
    code: int = ExitCode.BAD_INPUT,
) -> tuple[Result | None, tuple[Problem, ...]]:
    """What the action returned, or the problems of a file system that fails or does not answer."""
    try:
        return task.result(until), ()
    except NoAnswer:
        remedy = "Check the mount and the storage behind it; if it is only slow, raise check_timeout."
        return None, (Problem(int(code), subject, f"{path} did not answer within {timeout:g} s", remedy),)
    except JobError as error:
        return None, error.problems
    except OSError as error:
        where = str(error.filename or "file system")
        remedy = "Check the mount and its permissions."
        return None, (bad_input(where, error.strerror or str(error), remedy),)


@contextlib.contextmanager
def _private_folder(environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """TMPDIR for a process, since PyTorch leaves an empty folder there; nothing where no folder can be made."""
    with contextlib.ExitStack() as stack:
        variables = {}
        with contextlib.suppress(OSError):  # a job's check names a folder that fails, and answers need none
            folder = tempfile.TemporaryDirectory(
                prefix="sdjob-", dir=environ.get("TMPDIR") or None, ignore_cleanup_errors=True
            )
            variables["TMPDIR"] = stack.enter_context(folder)
        yield variables


def ask(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    seconds: float,
    setting: str = "",
    memory: int = _WITH_DEVICES,
) -> Any:
    """The JSON in the last line that Python prints when called with these arguments, within time and bytes of memory.

    Raises NoAnswer with the reason: the last line of its errors, or the limit, which may be a `setting`.
    """
    command = [sys.executable, *arguments]
    try:
        with _private_folder(environ) as variables:
            done = subprocess.run(
                **child_process.options(command, {**environ, **variables}, memory),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=True,
            )
        return reading.json_of(done.stdout.rstrip().rpartition("\n")[2])  # after what libraries print
    except subprocess.TimeoutExpired:
        limit = f"{setting}={seconds:g} s" if setting else f"{seconds:g} s"
        raise NoAnswer(f"no answer within {limit}") from None
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise NoAnswer(reason.strip().splitlines()[-1]) from error
