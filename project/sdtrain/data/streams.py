"""Streams of training images: a recipe is one or two of them, each with its prompt and its weight."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from sdjob.problems import Problem
from sdtrain.architectures.base import Conditioning
from sdtrain.data.buckets import Buckets
from sdtrain.data.images import collate
from sdtrain.data.sampling import BatchShape, Sample, draws, micro_batches, sample_at


class Examples(Protocol):
    """Training examples by their place in the sample stream, the same on every rank and in every worker."""

    def __len__(self) -> int: ...

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        """`pixel_values` [3, H, W] in [-1, 1], or `moments` of its latents [2C, h, w]; `caption`, `name`, `sample`."""
        ...

    def captions(self, limit: int) -> Iterator[str]: ...

    def time_ids(self, sample: Sample) -> torch.Tensor: ...

    @property
    def bad(self) -> Mapping[int, Problem]:
        """The images that are known not to be usable, and why; others stand in for them."""
        ...


class PromptEncodings(Protocol):
    """What the network is told of every prompt of the run, each tensor of one sample."""

    def __getitem__(self, prompt: str) -> Conditioning: ...


@dataclass(frozen=True)
class Stream:
    """Images that are trained on together: their prompt (None: each image's caption) and loss weight."""

    name: str
    images: Examples
    prompt: str | None
    weight: float = 1.0
    image_weights: tuple[float, ...] = ()  # of each image's error, by index; empty: all count alike


def prompts_of(stream: Stream, limit: int) -> list[str]:
    """The prompt of a stream, or the first `limit` captions."""
    return list(stream.images.captions(limit)) if stream.prompt is None else [stream.prompt]


@dataclass(frozen=True)
class StreamBatch:
    """A batch of one stream. What comes from a cache replaces what it was made of."""

    pixel_values: torch.Tensor | None  # [B, 3, H, W] in [-1, 1]
    moments: torch.Tensor | None  # of the VAE's posterior, [B, 2C, h, w]
    prompts: list[str]
    encodings: Conditioning | None  # of the prompts
    samples: list[Sample]  # B places of the stream
    weight: float  # of the stream in the loss
    names: list[str]  # of the images
    passed_over: list[Problem]  # of images that others stand in for
    image_weights: torch.Tensor | None  # of each sample's error, [B]; None: all count alike
    time_ids: torch.Tensor | None = None  # sizes and crops, [B, 6], where the network is told them

    def pin_memory(self) -> StreamBatch:
        """Called by the loader, so that copies to the device need not wait."""
        return replace(
            self,
            pixel_values=_pinned(self.pixel_values),
            moments=_pinned(self.moments),
            encodings=self.encodings and {name: of.pin_memory() for name, of in self.encodings.items()},
            image_weights=_pinned(self.image_weights),
            time_ids=_pinned(self.time_ids),
        )


def _pinned(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.pin_memory()


@dataclass(frozen=True)
class StreamSet(Dataset[tuple[dict[str, Any], ...]]):
    """Place of the run's stream → one image of each stream."""

    streams: tuple[Stream, ...]
    seed: int
    proportion_empty_prompts: float = 0.0
    encodings: PromptEncodings | None = None
    # Of the first stream; the images of the others are cropped to the same sizes.
    buckets: Buckets | None = None
    takes_sizes: bool = False  # whether the network is told sizes and crops

    def __getitem__(self, place: int) -> tuple[dict[str, Any], ...]:
        samples = self.samples(place)
        return tuple(stream.images[sample] for stream, sample in zip(self.streams, samples, strict=True))

    def resume_at(self, position: int, global_batch: int) -> int:
        """The position at which a run goes on that is at `position` after steps of this global batch (0: unknown).

        With buckets and another global batch, that is the start of the next epoch.
        """
        if self.buckets is None or position == 0 or global_batch == self.buckets.global_batch:
            return position
        return self.buckets.next_epoch(position)

    @property
    def bad_samples(self) -> tuple[str, ...]:
        """Names of the images that were found not to be usable before training."""
        return tuple(problem.subject for stream in self.streams for problem in stream.images.bad.values())

    def samples(self, place: int) -> tuple[Sample, ...]:
        """The sample of each stream at a place."""
        plain = (sample_at(self.seed, len(s.images), place, s.name) for s in self.streams)
        if self.buckets is None:
            return tuple(plain)
        first = self.buckets.sample_at(place)
        return first, *(replace(sample, size=first.size) for sample in list(plain)[1:])

    def collate(self, items: list[tuple[dict[str, Any], ...]]) -> tuple[StreamBatch, ...]:
        examples = zip(*items, strict=True)
        return tuple(self._batch(stream, list(of)) for stream, of in zip(self.streams, examples, strict=True))

    def _batch(self, stream: Stream, examples: list[dict[str, Any]]) -> StreamBatch:
        batch = collate(examples)
        prompts = [
            "" if self._is_emptied(sample) else caption if stream.prompt is None else stream.prompt
            for caption, sample in zip(batch["caption"], batch["sample"], strict=True)
        ]
        return StreamBatch(
            batch.get("pixel_values"),
            batch.get("moments"),
            prompts,
            self._encodings(prompts),
            batch["sample"],
            stream.weight,
            batch["name"],
            [problem for problems in batch.get("passed_over", ()) for problem in problems],
            torch.tensor([stream.image_weights[sample.index] for sample in batch["sample"]])
            if stream.image_weights
            else None,
            self._time_ids(stream, batch["sample"]),
        )

    def _encodings(self, prompts: list[str]) -> Conditioning | None:
        if self.encodings is None:
            return None
        each = [self.encodings[prompt] for prompt in prompts]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    def _time_ids(self, stream: Stream, samples: list[Sample]) -> torch.Tensor | None:
        if not self.takes_sizes:
            return None
        return torch.stack([stream.images.time_ids(sample) for sample in samples])

    def _is_emptied(self, sample: Sample) -> bool:
        """Whether the network sees the empty prompt, for classifier-free guidance (arXiv:2207.12598)."""
        if not self.proportion_empty_prompts:
            return False
        chance = torch.rand((), generator=draws(self.seed, sample, "empty_prompt"))
        return bool(chance < self.proportion_empty_prompts)


_STOPS = (signal.SIGTERM, signal.SIGINT)


def ended_by_parent_only(_worker: int) -> None:
    """Keeps a loader process alive while its parent saves: torchrun and a terminal signal a whole group of
    processes, some platforms every process there is, and a training process whose loader dies cannot save any
    more. Its own parent still ends it, and it ends itself when that one has died."""
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
    first_place: int,
    steps: int,
    workers: int,
    pin_memory: bool,
) -> Iterator[tuple[StreamBatch, ...]]:
    """This rank's batches from `first_place` on, `accumulation` of them per optimizer step."""
    batches: DataLoader[Any] = DataLoader(
        examples,
        batch_sampler=micro_batches(shape, rank, first_place, steps),
        num_workers=workers,
        collate_fn=examples.collate,
        worker_init_fn=ended_by_parent_only,
        pin_memory=pin_memory,
    )
    return iter(batches)
