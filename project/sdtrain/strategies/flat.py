"""Parameters as views of one flat tensor, so that an update of all of them takes a few kernels.

Gradients, optimizer state and EMA are flat tensors of the same layout, and have the same views.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from sdtrain.strategies.shards import Shards

_ALIGNED = 64  # values: a view starts at a multiple of 128 bytes or more, where vectorized kernels read
ROW = 4096  # values: the length of a bucket is a multiple of it
_BUCKET = 2**25  # values of a bucket at least, except for the last one


@dataclass(frozen=True)
class Slot:
    """The position of a parameter in a flat tensor."""

    name: str
    shape: torch.Size
    strides: tuple[int, ...]  # of the parameter when it was laid out: channels_last stays channels_last
    start: int

    def of(self, flat: torch.Tensor, origin: int = 0) -> torch.Tensor:
        """The values of this parameter in a flat tensor that starts at `origin` of the layout; a view."""
        return flat.as_strided(self.shape, self.strides, flat.storage_offset() + self.start - origin)


@dataclass(frozen=True)
class Bucket:
    """Neighboring parameters: values `start` to `stop` of the flat tensor."""

    slots: tuple[Slot, ...]
    start: int
    stop: int


def layout(parameters: Mapping[str, torch.Tensor], bucket_size: int) -> tuple[Bucket, ...]:
    """Lay out parameters one after the other, in buckets."""
    return tuple(_buckets(parameters, bucket_size))


def _buckets(parameters: Mapping[str, torch.Tensor], bucket_size: int) -> Iterator[Bucket]:
    slots: list[Slot] = []
    start = position = 0
    for name, parameter in parameters.items():
        strides = torch.empty_like(parameter, device="meta").stride()  # dense, whatever the parameter is
        slots.append(Slot(name, parameter.shape, strides, position))
        position = _rounded_up(position + parameter.numel(), _ALIGNED)
        if position - start >= bucket_size:
            position = _rounded_up(position, ROW)
            yield Bucket(tuple(slots), start, position)
            slots, start = [], position
    if slots:
        yield Bucket(tuple(slots), start, _rounded_up(position, ROW))


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class Flat:
    """The trainable parameters of one learning rate: fp32 masters, and the copy that the model computes with, which
    in fp32 is the masters themselves."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
        self.parameters = tuple(parameters.values())
        self.buckets = layout(parameters, _BUCKET)
        self.slots = tuple(slot for bucket in self.buckets for slot in bucket.slots)
        device = self.parameters[0].device
        self.master = torch.zeros(self.buckets[-1].stop, device=device)
        same = dtype == self.master.dtype
        self.working = self.master if same else torch.zeros_like(self.master, dtype=dtype)
        for slot, parameter in zip(self.slots, self.parameters, strict=True):
            slot.of(self.master).copy_(parameter.detach())
            parameter.data = slot.of(self.working)  # which frees the memory that it had
        self.refresh()

    def parameters_by_bucket(self) -> Iterator[tuple[Bucket, Sequence[nn.Parameter]]]:
        parameters = iter(self.parameters)
        for bucket in self.buckets:
            yield bucket, tuple(islice(parameters, len(bucket.slots)))

    def by_bucket(self, flat: torch.Tensor) -> Iterator[torch.Tensor]:
        """The buckets of a flat tensor of this layout, as views."""
        return (flat[bucket.start : bucket.stop] for bucket in self.buckets)

    def named(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """The views of the parameters in a flat tensor of this layout."""
        return {slot.name: slot.of(flat) for slot in self.slots}

    def refresh(self) -> None:
        """Copy the masters to the working copy."""
        if self.working is not self.master:
            self.working.copy_(self.master)

    def use(self, values: torch.Tensor) -> None:
        """Let the model compute with other values of this layout, fp32; without a copy where it computes in fp32."""
        if self.working is not self.master:
            self.working.copy_(values)
            return
        for slot, parameter in zip(self.slots, self.parameters, strict=True):
            parameter.data = slot.of(values)


def named(flats: Mapping[str, Flat], tensors: Shards) -> dict[str, torch.Tensor]:
    """The views of all parameters in flat tensors, one for each of `flats`."""
    return {name: view for key, flat in flats.items() for name, view in flat.named(tensors[key]).items()}


def norm_of(flats: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norm of flat tensors together, []. Row by row, since PyTorch adds up a long fp32 tensor on a CPU in so few
    partial sums that at 10^8 values the norm is 2 % too small."""
    rows = [torch.linalg.vector_norm(flat.view(-1, ROW), dim=1) for flat in flats]
    norm: torch.Tensor = torch.linalg.vector_norm(torch.cat(rows))
    return norm
