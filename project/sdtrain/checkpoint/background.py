"""When a checkpoint is written: at once, or by a thread while the next steps run."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec
from sdtrain.checkpoint import checkpoint
from sdtrain.checkpoint.checkpoint import TrainState, Write
from sdtrain.context import RunContext
from sdtrain.reporting.progress import say
from sdtrain.reporting.tracker import Tracker
from sdtrain.runtime import heartbeat, host_memory
from sdtrain.runtime.distributed import World
from sdtrain.strategies.base import Strategy
from sdtrain.strategies.shards import Shards

_NO_TRACKER = Tracker()


class Saver:
    """Saves the checkpoints of a run, one after the other; every method is collective.

    A failure in the background is raised on every rank by the next save; `failed` reports it at once.
    """

    def __init__(self, context: RunContext, tracker: Tracker = _NO_TRACKER) -> None:
        self._context, self._tracker = context, tracker
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._has_copied = False
        self._folder: Path | None = None  # that is being written in the background, on every rank
        self._writing: Future[None] | None = None  # this rank's part of it

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown()  # a started checkpoint is completed, whatever has ended the run

    @property
    def failed(self) -> bool:
        """Whether the save in the background has failed, where this rank knows of it. Not collective."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def save(self, state: TrainState, strategy: Strategy, ema: Shards | None, *, background: bool) -> None:
        """Save a complete checkpoint; `background`: from a copy in host memory, where that has room.

        Raises JobError (73), also that of the save before.
        """
        spec, world = self._context.spec, self._context.world
        self._wait()  # the memory of the copy before is used again
        background = background and _has_room_for_copy(spec, world, strategy, ema, again=self._has_copied)
        self._has_copied |= background
        self.write(state, strategy.writer(ema, background=background), background=background)

    def write(self, state: TrainState, write: Write, *, background: bool = False) -> None:
        """Save a complete checkpoint or leave none, then delete the oldest beyond `checkpoints_total_limit`.

        `write` is called on every rank; on the first one it returns when all have written. `background`: in another
        thread, while the run continues. It then calls nothing that is collective for the run itself, and what it writes
        must not change any more.
        """
        self._wait()
        heartbeat.name("save")
        heartbeat.Pulse("save")()
        folder = checkpoint.begin(self._context, state.step)
        if background:
            self._folder, self._writing = folder, self._thread.submit(self._write, folder, state, write)
            return
        with checkpoint.writing(folder, self._context.world):
            self._write(folder, state, write)

    def _write(self, folder: Path, state: TrainState, write: Write) -> None:
        write(folder)
        if self._context.world.is_main:
            checkpoint.complete(self._context, state, folder)
            self._tracker.event("checkpoint", state.step)

    def _wait(self) -> None:
        folder, writing, self._folder, self._writing = self._folder, self._writing, None, None
        if folder and writing:
            with checkpoint.writing(folder, self._context.world):
                writing.result()


def _has_room_for_copy(
    spec: RunSpec, world: World, strategy: Strategy, ema: Shards | None, *, again: bool = False
) -> bool:
    """Whether every host has memory for copies of what its ranks save, and of the weights once more. Collective.

    `again`: a strategy that does not shard has kept the memory of the copies before.
    """
    weights = sum(master.numel() * master.element_size() for master in strategy.masters().values())
    shards = PLUGINS[spec.plugin].shards
    kept = again and not shards
    copies = 1.0 if kept else 2 + OPTIMIZERS[spec.optimizer].state_bytes / 4 + (1 if ema else 0)
    saves = world.is_main or shards
    host = world.rank - world.local_rank  # identified by its first rank
    sizes = world.gather((host, copies * weights if saves else 0))
    needed = sum(size for where, size in sizes if where == host)
    short = world.local_rank == 0 and host_memory.available() < needed
    if short:
        say(f"not enough host memory for a copy of {needed / 1e9:.1f} GB: training waits for the checkpoint")
    return not world.any(short)
