"""When a checkpoint is written: at once, or by a thread beside the next steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from sdjob.output.layout import OutputLayout
from sdtrain.checkpoint import checkpoint
from sdtrain.checkpoint.checkpoint import TrainState
from sdtrain.reporting.progress import say
from sdtrain.runtime.distributed import World


class Saver:
    """Saves the checkpoints of a run, one after the other.

    A failure beside the steps is raised on every rank by the next save; `failed` tells of it at once.
    """

    def __init__(self, layout: OutputLayout, world: World, limit: int | None) -> None:
        self._layout, self._world, self._limit = layout, world, limit
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._begun: Path | None = None  # the folder that is being written, on every rank
        self._writing: Future[None] | None = None  # who writes this rank's part of it

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()  # whatever has ended the run: what was begun is of before, and is completed

    @property
    def failed(self) -> bool:
        """Whether the save that was under way has failed, as far as this rank knows."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def save(self, state: TrainState, write: Callable[[Path], None]) -> None:
        """A whole checkpoint, as `checkpoint.save`. Collective. Raises JobError (73)."""
        self._wait()
        path = checkpoint.save(self._layout, state, write, self._world, self._limit)
        if self._world.is_main:
            say(f"saved {path}")

    def save_beside(self, state: TrainState, write: Callable[[Path], None]) -> None:
        """The same, while the run goes on. Collective. Raises JobError (73), of the save before too.

        `write` is called on every rank, in another thread: it calls nothing that is collective for the run
        itself, and what it writes must not change any more. On the first rank it returns when all have written.
        """
        self._wait()
        self._begun = checkpoint.begin(self._layout, state.step, self._world)
        self._writing = self._thread.submit(self._write, self._begun, state, write)

    def _write(self, folder: Path, state: TrainState, write: Callable[[Path], None]) -> None:
        write(folder)
        if self._world.is_main:
            checkpoint.complete(self._layout, state, folder, self._limit)
            say(f"saved {self._layout.step_folder(state.step)}")

    def _wait(self) -> None:
        """For the save under way, if there is one. Collective."""
        if self._begun is None:
            return
        folder, writing, self._begun, self._writing = self._begun, self._writing, None, None
        with checkpoint.writing(folder, self._world):
            if writing is not None:
                writing.result()
