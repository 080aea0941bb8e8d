"""Functions that run in a child process, bounded in memory and time.

What pyarrow's C++ or pickle's C does with a damaged or hostile file ends the process, or takes all of its memory or
time. In a child process that is an error with the name of the file.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any, TypeVar

from sdjob.children.start import ending_with_this, limit_memory
from sdjob.problems import JobError, Problem, bad_input

Result = TypeVar("Result")

MEMORY = 512 << 20  # bytes that a function may take in a child process
_PATIENCE = 60.0  # seconds without a result or a sign of progress
_IDLE = 1.0  # seconds until a child process without work ends; starting another one takes a third of a second
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from sdjob.children import bounded; bounded.serve()"
_REMEDY = "copy or download this file again; save a table again with fewer rows in a group"
# One arena and the system's allocator: what is reserved and not used would count as memory.
_ALLOCATION = {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}


def in_child(
    function: Callable[..., Result],
    *arguments: Any,
    subject: str,
    memory: int = MEMORY,
    patience: float | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Result:
    """What a function returns or raises that is called in another process; all of it must be picklable.

    `subject`: what the function reads, unless it says so by `working_on`; each call of that counts as progress.
    Raises JobError (66) where the process dies, or takes too much memory, or `patience` seconds without progress.
    """
    try:
        child = _idle.pop()
    except IndexError:
        child = _Child()
    patience = _PATIENCE if patience is None else patience
    return child.call((memory, function, arguments), subject, patience, progress)  # type: ignore[no-any-return]


def working_on(subject: str) -> None:
    """In a child process: what is read from here on, for an error that names it, and a sign of progress."""
    if _answers:
        _write(_answers[0], pickle.dumps(("at", subject)))


class _Child:
    """A process that calls functions one after the other, and the thread that it lives and dies with."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._abandoned = False
        threading.Thread(target=self._live, daemon=True).start()

    def call(self, request: Any, subject: str, patience: float, progress: Callable[[], None]) -> Any:
        self._requests.put(pickle.dumps(request))
        try:
            while True:
                kind, value = self._answers.get(timeout=patience)
                if kind != "at":
                    break
                subject = value
                progress()
        except queue.Empty:
            self._kill()
            raise JobError(_unread(subject, f"its reader took longer than {patience:g} s")) from None
        except BaseException:
            self._kill()
            raise
        if kind == "died":
            raise value if isinstance(value, OSError) else JobError(_unread(subject, value))
        _idle.append(self)
        if kind == "memory":
            raise JobError(_unread(subject, f"its reader needs more than {request[0] >> 20:,} MiB of memory"))
        if kind == "raised":
            raise value
        return value

    def _live(self) -> None:
        try:
            program = [sys.executable, "-I", "-c", _PROGRAM, *sys.path]
            with subprocess.Popen(
                ending_with_this(program, signal.SIGKILL),
                start_new_session=True,  # a signal to all processes of a rank is not for its reader
                env={**os.environ, **_ALLOCATION},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as process:
                self._process = process
                with contextlib.suppress(EOFError, BrokenPipeError, pickle.UnpicklingError):
                    self._serve(process)
                if self._abandoned:
                    process.kill()
            self._answers.put(("died", f"its reader crashed ({_named(process.returncode)})"))
        except OSError as error:
            self._answers.put(("died", error))

    def _serve(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout
        while not self._abandoned:
            try:
                request = self._requests.get(timeout=_IDLE)
            except queue.Empty:
                with contextlib.suppress(ValueError):  # it is not idle: a request is about to come
                    _idle.remove(self)
                    return
                continue
            _write(process.stdin, request)
            kind = "at"
            while kind == "at":
                kind, value = pickle.load(process.stdout)
                self._answers.put((kind, value))

    def _kill(self) -> None:
        self._abandoned = True
        if self._process:
            self._process.kill()


_idle: list[_Child] = []  # in a child process without work
_answers: list[IO[bytes]] = []  # in such a process: where its answers go
os.register_at_fork(after_in_child=_idle.clear)


def _unread(subject: str, reason: str) -> Problem:
    return bad_input(subject, f"cannot be read: {reason}", _REMEDY)


def _named(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit status {returncode}"


def _write(stream: IO[bytes], message: bytes) -> None:
    stream.write(message)
    stream.flush()


def serve() -> None:
    """The child process: call what is asked for, until standard input ends."""
    _answers.append(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # what libraries print
    while True:
        try:
            memory, function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        limit_memory(memory)
        try:
            answer = pickle.dumps(("returned", function(*arguments)))
        except MemoryError:
            answer = pickle.dumps(("memory", None))
        except Exception as error:  # raised again by the caller
            answer = pickle.dumps(("raised", error))
        _write(_answers[0], answer)
