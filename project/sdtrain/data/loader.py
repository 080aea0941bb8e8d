"""The batches of a rank, made by loader processes and copied to the device one ahead."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from sdtrain.data.batch import Batch
from sdtrain.data.sampling import BatchShape, rank_batches
from sdtrain.data.streams import StreamSet

_STOPS = (signal.SIGTERM, signal.SIGINT)


def ended_by_parent_only(_worker: int) -> None:
    """Let a loader process obey stop signals of its parent alone, and end with it.

    torchrun and terminals signal the whole process group, some platforms every process; a training process whose
    loader dies can no longer save.
    """
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo(_STOPS).si_pid != os.getppid():
        pass
    os._exit(0)


def loader(
    examples: StreamSet,
    shape: BatchShape,
    rank: int,
    first_position: int,
    steps: int,
    workers: int,
    device: torch.device,
) -> Iterator[Batch]:
    """This rank's batches on its device from `first_position` on, `accumulation` of them per optimizer step."""
    batches: DataLoader[Any] = DataLoader(
        examples,
        batch_sampler=rank_batches(shape, rank, first_position, steps),
        num_workers=workers,
        collate_fn=examples.collate,
        worker_init_fn=ended_by_parent_only,
        pin_memory=device.type == "cuda",
    )
    return on_device(iter(batches), device)


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a device. On CUDA the next one is copied on a stream of its own while a step computes."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copying: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Batch, Any, Batch] | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            copied, done = batch.to(device), copying.record_event()
        if ahead is not None:
            yield _ready(*ahead)
        ahead = copied, done, batch  # the source has to live until it is copied
    if ahead is not None:
        yield _ready(*ahead)


def _ready(batch: Batch, done: Any, _source: Batch) -> Batch:
    """A copied batch, for the work that is queued from now on."""
    computing = torch.cuda.current_stream()
    computing.wait_event(done)
    batch.record_stream(computing)
    return batch
