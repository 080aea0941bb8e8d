"""Streams of training images: a recipe has one or two, each with its prompt and loss weight."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from sdjob.problems import Problem
from sdtrain.architectures.base import Conditioning
from sdtrain.data.buckets import Buckets
from sdtrain.data.cache import Cached
from sdtrain.data.sampling import BatchShape, Sample, rank_batches, sample_at, sample_generator
from sdtrain.data.training_images import TrainingImages, collate


@dataclass(frozen=True)
class Stream:
    """Images with their prompt (None: each image has its caption) and loss weight."""

    name: str
    images: TrainingImages
    prompt: str | None
    weight: float = 1.0
    image_weights: tuple[float, ...] = ()  # the weight of each image in the loss, by index; empty: equal


def prompts_of(stream: Stream, limit: int) -> list[str]:
    """The prompt of a stream, or the first `limit` captions."""
    return list(stream.images.captions(limit)) if stream.prompt is None else [stream.prompt]


@dataclass(frozen=True)
class StreamBatch:
    """A batch of one stream. What comes from a cache replaces its input."""

    pixel_values: torch.Tensor | None  # [B, 3, H, W] in [-1, 1]
    posterior: torch.Tensor | None  # the posterior of the latents (mean, logvar), [B, 2C, h, w]
    prompts: list[str]
    encodings: Conditioning | None  # the encoded prompts
    samples: list[Sample]  # B of them
    weight: float  # the stream's weight in the loss
    names: list[str]  # the images' names
    skipped: list[Problem]  # problems of images that others replace
    image_weights: torch.Tensor  # the weight of each sample in the loss, [B]
    time_ids: torch.Tensor | None = None  # sizes and crops, [B, 6], where the architecture takes them

    def pin_memory(self) -> StreamBatch:
        """Called by the loader, so that copies to the device are asynchronous."""
        tensors: dict[str, Any] = {
            name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        encodings = self.encodings and {name: of.pin_memory() for name, of in self.encodings.items()}
        return replace(self, encodings=encodings, **tensors)


@dataclass(frozen=True)
class StreamSet(Dataset[tuple[dict[str, Any], ...]]):
    """Position in the run → one example of each stream."""

    streams: tuple[Stream, ...]
    seed: int
    proportion_empty_prompts: float = 0.0
    encodings: Cached[str] | None = None  # of every prompt, without a batch dimension
    buckets: Buckets | None = None  # of the first stream; images of the others are cropped to the same sizes
    takes_sizes: bool = False  # whether sizes and crops are part of the conditioning

    def __getitem__(self, position: int) -> tuple[dict[str, Any], ...]:
        samples = self.samples(position)
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
        """Names of the images that were found to be unusable before training."""
        return tuple(problem.subject for stream in self.streams for problem in stream.images.bad.values())

    def samples(self, position: int) -> tuple[Sample, ...]:
        """The sample of each stream at a position."""
        plain = tuple(sample_at(self.seed, len(s.images), position, s.name) for s in self.streams)
        if self.buckets is None:
            return plain
        first = self.buckets.sample_at(position)
        return first, *(replace(sample, size=first.size) for sample in plain[1:])

    def collate(self, items: list[tuple[dict[str, Any], ...]]) -> tuple[StreamBatch, ...]:
        examples = zip(*items, strict=True)
        return tuple(self._batch(stream, list(of)) for stream, of in zip(self.streams, examples, strict=True))

    def _batch(self, stream: Stream, examples: list[dict[str, Any]]) -> StreamBatch:
        batch = collate(examples)
        samples: list[Sample] = batch["sample"]
        prompts = [
            "" if self._is_emptied(sample) else caption if stream.prompt is None else stream.prompt
            for caption, sample in zip(batch["caption"], samples, strict=True)
        ]
        encodings = None
        if self.encodings is not None:
            encodings = collate([self.encodings[prompt] for prompt in prompts])
        weights = stream.image_weights
        return StreamBatch(
            batch.get("pixel_values"),
            batch.get("posterior"),
            prompts,
            encodings,
            samples,
            stream.weight,
            batch["name"],
            [problem for problems in batch["skipped"] for problem in problems],
            torch.tensor([weights[sample.index] if weights else 1.0 for sample in samples]),
            torch.stack([stream.images.time_ids(sample) for sample in samples]) if self.takes_sizes else None,
        )

    def _is_emptied(self, sample: Sample) -> bool:
        """Whether a sample has the empty prompt, for classifier-free guidance (arXiv:2207.12598)."""
        if not self.proportion_empty_prompts:
            return False
        chance = torch.rand((), generator=sample_generator(self.seed, sample, "empty_prompt"))
        return bool(chance < self.proportion_empty_prompts)


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
    pin_memory: bool,
) -> Iterator[tuple[StreamBatch, ...]]:
    """This rank's batches from `first_position` on, `accumulation` of them per optimizer step."""
    batches: DataLoader[Any] = DataLoader(
        examples,
        batch_sampler=rank_batches(shape, rank, first_position, steps),
        num_workers=workers,
        collate_fn=examples.collate,
        worker_init_fn=ended_by_parent_only,
        pin_memory=pin_memory,
    )
    return iter(batches)
