"""The processes of a run: their ranks, and the few values that they agree on."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from sdjob.formatting import visible
from sdjob.problems import JobError, Problem
from sdjob.protocol import DEVICE_TIMEOUT
from sdtrain.runtime import devices

# On the host: enough for rank 0 to convert a large dataset while the others wait.
_TIMEOUT = timedelta(hours=2)

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """The position of this process. Every method is collective: each rank must call it, at the same point."""

    rank: int
    local_rank: int
    size: int
    device_type: devices.DeviceType
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; on the CPU, so that no device has to wait."""
        return self.ask(flag)()[0]

    def ask(self, *flags: bool) -> Callable[[], tuple[bool, ...]]:
        """Start to find out which flags are set on any rank; the result waits for the answer."""
        if self.size == 1:
            return lambda: flags
        votes = torch.tensor(flags, dtype=torch.int64)
        work = dist.all_reduce(votes, dist.ReduceOp.MAX, async_op=True)

        def answer() -> tuple[bool, ...]:
            wait_for_ranks(work)
            return tuple(map(bool, votes.tolist()))

        return answer

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over the ranks, on the CPU in fp64, any shape."""
        value = value.detach().cpu().double()  # in this order: not every device has fp64
        if self.size > 1:
            dist.all_reduce(value)
        return value / self.size

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order; small picklable objects only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, problems: Sequence[Problem]) -> None:
        """Raise on every rank the JobError with the problems of all ranks, if there are any."""
        everything = [problem for of_rank in self.gather(problems) for problem in of_rank]
        if everything:
            raise JobError(everything)

    def from_main(self, make: Callable[[], Value]) -> Value:
        """What `make` returns on the first rank, the only one that calls it. Raises its JobError on every rank."""
        value: Any = None
        problems: Sequence[Problem] = ()
        if self.is_main:
            try:
                value = make()
            except JobError as error:
                problems = error.problems
        self.agree(problems)
        of_main: Value = self.gather(value)[0]
        return of_main

    def say(self, text: str) -> None:
        """Print one line for readers of the log, on the first rank. Not collective."""
        if self.is_main:
            print(visible(text), flush=True)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the body on the first rank of each node before the others."""
        if self.local_rank != 0:
            self.barrier()
        try:
            yield
        finally:
            if self.local_rank == 0:
                self.barrier()


def wait_for_ranks(work: dist.Work | None) -> None:
    """Wait for a collective call that was started before; the launcher knows this function in the stacks of a rank."""
    if work is not None:  # None: on a rank outside of the group
        work.wait()


@contextmanager
def join(
    device: str,
    environ: Mapping[str, str] = os.environ,
    *,
    group_of_one: bool = False,
    waiting: AbstractContextManager[None] | None = None,
    listener: socket.socket | None = None,
) -> Iterator[World]:
    """Join the process group that torchrun describes, or none for a single process; leave it at the end.

    `group_of_one`: give a single process a group too, which strategies that shard need.
    `waiting`: entered while this rank waits for others.
    `listener`: where rank 0 serves the store of the ranks (store_port.reserved); None: where PyTorch does.
    """
    rank, local_rank = int(environ.get("RANK", 0)), int(environ.get("LOCAL_RANK", 0))
    size = int(environ.get("WORLD_SIZE", 1))
    device_type = devices.choose(device)
    world = World(rank, local_rank, size, device_type, devices.device_of(device_type, local_rank))
    if size == 1 and not group_of_one:
        yield world
        return
    backend = device_type.backend
    if backend != "gloo":
        backend = f"cpu:gloo,{device_type.torch_type}:{backend}"
    if size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        try:
            yield world
        finally:
            dist.destroy_process_group()
        return
    with waiting or nullcontext():
        store = _store(environ, rank, size, listener)
        if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # torchrun keeps the store for all attempts: one must not find the addresses of an earlier one.
            attempt = f"attempt-{environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
            store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
        # With its device a rank opens its connections at once, and not in the first step.
        bound = world.device if device_type.backend == "nccl" else None
        dist.init_process_group(
            backend, timeout=_TIMEOUT, store=store, rank=rank, world_size=size, device_id=bound
        )
        if bound and (seconds := environ.get(DEVICE_TIMEOUT)):
            limit_device_calls(world.device, timedelta(seconds=float(seconds)))
    yield world
    # Not after an exception: a failing rank must not wait for peers that are in a collective call.
    dist.destroy_process_group()


def limit_device_calls(device: torch.device, limit: timedelta) -> None:
    """How long a collective call between devices may take; init_process_group takes one time for all backends."""
    group: Any = dist.group.WORLD
    group._get_backend(device)._set_default_timeout(limit)


def _store(environ: Mapping[str, str], rank: int, size: int, listener: socket.socket | None) -> Any:
    """The store by which the ranks find each other."""
    if listener is None:
        return next(rendezvous("env://", rank, size))[0]
    address, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    return dist.TCPStore(  # type: ignore[attr-defined]
        address, port, size, is_master=True, timeout=_TIMEOUT, master_listen_fd=listener.detach()
    )
