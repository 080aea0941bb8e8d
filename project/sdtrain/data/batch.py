"""A batch as the loader gives it: the samples of all streams with their random numbers, one tensor of each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_map, tree_map_only

from sdjob.problems import Problem
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Conditioning, Parts
from sdtrain.data.sampling import Sample, Size, sample_generator

Example = dict[str, Any]  # what is known of one sample, by the names of a batch's fields


@dataclass(frozen=True)
class RandomInputs:
    """The random numbers by which an image is noised: functions of its sample, so that any process can make them."""

    seed: int
    channels: int  # of the latents
    factor: int  # pixels along a side of a latent
    sample_timestep: Callable[[torch.Generator], torch.Tensor]
    noise_offset: bool = False
    input_perturbation: bool = False

    def of(self, sample: Sample, size: Size) -> dict[str, torch.Tensor]:
        """Standard normal numbers in fp32 by their purpose, and the timestep [], of an image of this size."""
        width, height = size
        latent = (self.channels, height // self.factor, width // self.factor)
        shapes = {"latent": latent, "noise": latent}
        if self.noise_offset:
            shapes["noise_offset"] = (self.channels, 1, 1)
        if self.input_perturbation:
            shapes["input_perturbation"] = latent
        numbers = {
            purpose: torch.randn(shape, generator=sample_generator(self.seed, sample, purpose))
            for purpose, shape in shapes.items()
        }
        timestep = self.sample_timestep(sample_generator(self.seed, sample, "timestep"))
        return {**numbers, "timestep": timestep[0]}


def random_inputs(parts: Parts, spec: RunSpec) -> RandomInputs:
    """The random numbers that the objective of a run asks for."""
    return RandomInputs(
        spec.seed,
        int(parts.vae.config.latent_channels),
        parts.latent_factor,
        parts.process.sample_timestep,
        noise_offset=bool(spec.noise_offset),
        input_perturbation=bool(spec.input_perturbation),
    )


@dataclass(frozen=True)
class Batch:
    """The samples of all streams, one stream after the other. What comes from a cache replaces its input."""

    pixels: torch.Tensor | None  # uint8, [B, 3, H, W]
    posterior: torch.Tensor | None  # the posterior of the latents (mean, logvar), [B, 2C, h, w]
    token_ids: Conditioning | None  # of the prompts, by the names of the text encoders
    encodings: Conditioning | None  # the encoded prompts
    random: Mapping[str, torch.Tensor]  # as RandomInputs names them, [B, …]
    weights: torch.Tensor  # the weight of each sample in the loss of its stream, [B]
    time_ids: torch.Tensor | None  # sizes and crops, [B, 6], where the architecture takes them
    sizes: tuple[int, ...]  # samples of each stream
    stream_weights: tuple[float, ...]  # the weight of each stream in the loss
    names: tuple[str, ...]  # the images' names
    skipped: tuple[Problem, ...]  # problems of images that others replace

    def pin_memory(self) -> Batch:
        """Called by the loader, so that copies to the device are asynchronous."""
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; of pinned memory, the copy is asynchronous."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def record_stream(self, stream: Any) -> None:
        """Keep the memory of the tensors until the work of a stream with them is done."""
        tree_map_only(torch.Tensor, lambda tensor: tensor.record_stream(stream), vars(self))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(self, **tree_map_only(torch.Tensor, change, vars(self)))


def collated(streams: Sequence[Sequence[Example]], stream_weights: Sequence[float]) -> Batch:
    """The batch of the examples of each stream."""
    every = [example for stream in streams for example in stream]

    def stacked(name: str) -> Any:
        values: list[Any] = [example.get(name) for example in every]
        return None if values[0] is None else tree_map(lambda *tensors: torch.stack(tensors), *values)

    return Batch(
        **{name: stacked(name) for name in ("pixels", "posterior", "token_ids", "encodings")},
        random=stacked("random"),
        weights=torch.tensor([example["weight"] for example in every]),
        time_ids=stacked("time_ids"),
        sizes=tuple(map(len, streams)),
        stream_weights=tuple(stream_weights),
        names=tuple(example["name"] for example in every),
        skipped=tuple(problem for example in every for problem in example["skipped"]),
    )
