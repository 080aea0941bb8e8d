"""Streams of training images: a recipe has one or two, each with its prompt and loss weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import Dataset

from sdtrain.architectures.base import Conditioning
from sdtrain.data.batch import Batch, Example, RandomInputs, collated
from sdtrain.data.buckets import Buckets
from sdtrain.data.cache import Cached
from sdtrain.data.sampling import Sample, sample_at, sample_generator
from sdtrain.data.training_images import TrainingImages


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
class StreamSet(Dataset[tuple[Example, ...]]):
    """Position in the run → one example of each stream."""

    streams: tuple[Stream, ...]
    seed: int
    proportion_empty_prompts: float = 0.0
    encodings: Cached[str] | None = None  # of every prompt, without a batch dimension
    buckets: Buckets | None = None  # of the first stream; images of the others are cropped to the same sizes
    takes_sizes: bool = False  # whether sizes and crops are part of the conditioning
    random: RandomInputs | None = None  # None: examples are looked at, and not noised
    tokenize: Callable[[Sequence[str]], Conditioning] | None = None  # for prompts that are not encoded yet

    def __getitem__(self, position: int) -> tuple[Example, ...]:
        samples = self.samples(position)
        return tuple(
            self._example(stream, sample) for stream, sample in zip(self.streams, samples, strict=True)
        )

    def resume_at(self, position: int, global_batch: int) -> int:
        """The position at which a run goes on that is at `position` after steps of this global batch (0: unknown).

        With buckets and another global batch, that is the start of the next epoch.
        """
        if self.buckets is None or position == 0 or global_batch == self.buckets.global_batch:
            return position
        return self.buckets.next_epoch(position)

    @property
    def num_sizes(self) -> int:
        """How many shapes batches have."""
        return len(self.buckets.sizes) if self.buckets else 1

    @property
    def bad_samples(self) -> tuple[str, ...]:
        """Names of the images that were found to be unusable before training."""
        return tuple(problem.subject for stream in self.streams for problem in stream.images.bad.values())

    def samples(self, position: int) -> tuple[Sample, ...]:
        plain = tuple(sample_at(self.seed, len(s.images), position, s.name) for s in self.streams)
        if self.buckets is None:
            return plain
        first = self.buckets.sample_at(position)
        return first, *(replace(sample, size=first.size) for sample in plain[1:])

    def collate(self, items: list[tuple[Example, ...]]) -> Batch:
        return collated(list(zip(*items, strict=True)), [stream.weight for stream in self.streams])

    def _example(self, stream: Stream, sample: Sample) -> Example:
        example = stream.images[sample]
        used: Sample = example["sample"]  # with the index of the image that replaces an unusable one
        prompt = example.pop("caption") if stream.prompt is None else stream.prompt
        if self._is_emptied(used):
            prompt = ""
        example |= {"prompt": prompt, "weight": 1.0}
        if stream.image_weights:
            example["weight"] = stream.image_weights[used.index]
        if self.encodings is not None:
            example["encodings"] = self.encodings[prompt]
        elif self.tokenize:
            example["token_ids"] = {name: ids[0] for name, ids in self.tokenize([prompt]).items()}
        if self.random:
            example["random"] = self.random.of(used, used.size or stream.images.square)
        if self.takes_sizes:
            example["time_ids"] = stream.images.time_ids(used)
        return example

    def _is_emptied(self, sample: Sample) -> bool:
        """Whether a sample has the empty prompt, for classifier-free guidance (arXiv:2207.12598)."""
        if not self.proportion_empty_prompts:
            return False
        chance = torch.rand((), generator=sample_generator(self.seed, sample, "empty_prompt"))
        return bool(chance < self.proportion_empty_prompts)
