"""The gradients of a step: collected in buckets while the backward pass runs, and summed over the ranks meanwhile.

As DistributedDataParallel does it (Li et al. 2020, arXiv:2006.15704), but into flat tensors, and without a wrapper
around the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sdtrain.runtime.distributed import wait_for_ranks
from sdtrain.strategies.flat import Bucket, Flat

IN_PLACE = ("cpu",)  # devices on which an addition for each parameter costs little


class Gradients:
    """The gradients of all flat tensors, in their buckets.

    A bucket is sent when all its parameters have their gradients, in an order that is the same on every rank: that in
    which rank 0 completed the buckets in the first step.
    """

    def __init__(self, flats: Iterable[Flat], *, ranks: int, dtype: torch.dtype) -> None:
        """`dtype`: of the sums over the ranks."""
        self.ranks = ranks
        self._dtype = dtype
        self._buckets = [
            _Gradient(bucket, of) for flat in flats for bucket, of in flat.parameters_by_bucket()
        ]
        self._order = list(reversed(range(len(self._buckets))))
        self._completed: list[int] | None = []  # of the first step that exchanges; None: agreed on
        self._sent = 0  # how many, in that order, in this step
        self._exchanging = ranks > 1
        # A process alone has nothing to send meanwhile.
        for index, bucket in enumerate(self._buckets if ranks > 1 else ()):
            for parameter in bucket.parameters:
                register: Any = parameter.register_post_accumulate_grad_hook
                register(partial(self._arrived, index))

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around one backward pass of a step; the sums are exchanged in the last one."""
        self._exchanging = last and self.ranks > 1
        yield

    def _arrived(self, index: int, _: nn.Parameter) -> None:
        """Called by autograd when a parameter of this bucket has its gradient."""
        bucket = self._buckets[index]
        bucket.missing -= 1
        if not bucket.missing:
            self._complete(index)
            self._send()

    def _complete(self, index: int) -> None:
        self._buckets[index].collect()
        if self._exchanging and self._completed is not None:
            self._completed.append(index)

    def _send(self) -> None:
        while self._exchanging and self._sent < len(self._order):
            bucket = self._buckets[self._order[self._sent]]
            if not bucket.complete:
                return
            bucket.send(self._dtype)
            self._sent += 1

    def end_pass(self) -> None:
        """After a backward pass: complete the buckets that are not, for parameters that it did not use."""
        for index, bucket in enumerate(self._buckets):
            if not bucket.complete:
                self._complete(index)
        self._send()
        for bucket in self._buckets:
            bucket.begin_pass()

    def summed(self) -> list[torch.Tensor]:
        """The gradient of each bucket after the last pass, flat, fp32. Collective."""
        if self._completed and self.ranks > 1:
            order = torch.tensor(self._completed)
            dist.broadcast(order, 0)
            self._order, self._completed = order.tolist(), None
        self._sent = 0
        return [bucket.receive() for bucket in self._buckets]

    def reset(self) -> None:
        """Forget the gradients; waits for what was sent. Collective."""
        for bucket in self._buckets:
            bucket.reset()
        self._sent = 0

    def free(self) -> None:
        """Free the memory of the gradients; no pass follows."""
        self._buckets.clear()


class _Gradient:
    """The gradient of a bucket: one flat fp32 tensor.

    On a CPU autograd adds to it in place, since the gradients of the parameters are views of it: a second copy of all
    gradients is memory, and takes as long. Elsewhere these additions would be as many kernels; autograd hands over its
    gradients, one copy of a list collects them, and between updates the memory is free, for activations.
    """

    def __init__(self, bucket: Bucket, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self._bucket = bucket
        self._device = parameters[0].device
        self._total: torch.Tensor | None = None
        self._views: list[torch.Tensor] = []  # of the parameters, in that tensor
        self._in_place = self._device.type in IN_PLACE and parameters[0].dtype == torch.float32
        self._sent: tuple[torch.Tensor, dist.Work] | None = None
        self._is_first = True  # pass of a step
        self.begin_pass()
        if self._in_place:
            for parameter, view in zip(parameters, self._allocated(), strict=True):
                parameter.grad = view

    def begin_pass(self) -> None:
        self.missing = len(self.parameters)  # those without a gradient so far in this pass
        self.complete = False

    def collect(self) -> None:
        """Add the gradients of this pass; a parameter that got none adds nothing."""
        if not self._in_place:
            self._copy()
        self.complete, self._is_first = True, False

    def _copy(self) -> None:
        if self._total is None:
            self._views = self._allocated()
        assert self._total is not None
        gradients = [parameter.grad for parameter in self.parameters]
        views = [view for view, grad in zip(self._views, gradients, strict=True) if grad is not None]
        found = [gradient for gradient in gradients if gradient is not None]
        if self._is_first and len(found) < len(self._views):
            self._total.zero_()
        if found:
            (torch._foreach_copy_ if self._is_first else torch._foreach_add_)(views, found)
        for parameter in self.parameters:
            parameter.grad = None

    def _allocated(self) -> list[torch.Tensor]:
        """The parameters' views of a new tensor of zeros."""
        self._total = torch.zeros(self._bucket.stop - self._bucket.start, device=self._device)
        return [slot.of(self._total, self._bucket.start) for slot in self._bucket.slots]

    def send(self, dtype: torch.dtype) -> None:
        assert self._total is not None
        sent = self._total.to(dtype)
        work = dist.all_reduce(sent, async_op=True)
        assert work is not None
        self._sent = sent, work

    def receive(self) -> torch.Tensor:
        assert self._total is not None
        if self._sent is not None:
            sent, work = self._sent
            wait_for_ranks(work)
            if sent is not self._total:
                self._total.copy_(sent)
            self._sent = None
        return self._total

    def reset(self) -> None:
        if self._sent is not None:
            self.receive()
        self._is_first = True
        if not self._in_place:
            self._total, self._views = None, []
        elif self._total is not None:
            self._total.zero_()
