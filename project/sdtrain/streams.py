"""Streams of training pictures: a recipe is one or two of them, each with its prompt and its weight."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from sdtrain.data import TrainingImages, collate
from sdtrain.order import BatchShape, Sample, draws, micro_batches, sample_at


@dataclass(frozen=True)
class Stream:
    """Pictures that are trained on together: their prompt (None: each picture's caption) and loss weight."""

    name: str
    images: TrainingImages
    prompt: str | None
    weight: float = 1.0


def prompts_of(stream: Stream, limit: int) -> list[str]:
    """The prompt of a stream, or the first `limit` captions."""
    if stream.prompt is not None:
        return [stream.prompt]
    source = stream.images.source
    return [source.caption(index) or "" for index in range(min(limit, len(source)))]


@dataclass(frozen=True)
class StreamBatch:
    """A micro-batch of one stream: pixel_values [B, 3, H, W] in [-1, 1], B prompts, B places of the stream."""

    pixel_values: torch.Tensor
    prompts: list[str]
    samples: list[Sample]


@dataclass(frozen=True)
class StreamSet(Dataset[tuple[dict[str, Any], ...]]):
    """Place of the run's stream → one picture of each stream."""

    streams: tuple[Stream, ...]
    seed: int
    proportion_empty_prompts: float = 0.0

    def __getitem__(self, place: int) -> tuple[dict[str, Any], ...]:
        return tuple(
            stream.images[sample_at(self.seed, len(stream.images), place, stream.name)]
            for stream in self.streams
        )

    def collate(self, items: list[tuple[dict[str, Any], ...]]) -> tuple[StreamBatch, ...]:
        batches = []
        for stream, examples in zip(self.streams, zip(*items, strict=True), strict=True):
            batch = collate(list(examples))
            captions = batch["caption"] if stream.prompt is None else [stream.prompt] * len(examples)
            pairs = zip(captions, batch["sample"], strict=True)
            prompts = ["" if self._is_emptied(sample) else caption for caption, sample in pairs]
            batches.append(StreamBatch(batch["pixel_values"], prompts, batch["sample"]))
        return tuple(batches)

    def _is_emptied(self, sample: Sample) -> bool:
        """Whether the network sees the empty prompt, for classifier-free guidance (arXiv:2207.12598)."""
        if not self.proportion_empty_prompts:
            return False
        chance = torch.rand((), generator=draws(self.seed, sample, "empty_prompt"))
        return bool(chance < self.proportion_empty_prompts)


_STOPS = (signal.SIGTERM, signal.SIGINT)


def _ended_by_parent_only(_worker: int) -> None:
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
    streams: tuple[Stream, ...],
    seed: int,
    shape: BatchShape,
    rank: int,
    first_place: int,
    steps: int,
    workers: int,
    pin_memory: bool,
    proportion_empty_prompts: float = 0.0,
) -> DataLoader[tuple[StreamBatch, ...]]:
    """This rank's micro-batches from `first_place` on, `accumulation` of them per optimiser step."""
    examples = StreamSet(streams, seed, proportion_empty_prompts)
    batches: DataLoader[Any] = DataLoader(
        examples,
        batch_sampler=micro_batches(shape, rank, first_place, steps),
        num_workers=workers,
        collate_fn=examples.collate,
        worker_init_fn=_ended_by_parent_only,
        pin_memory=pin_memory,
    )
    return batches
