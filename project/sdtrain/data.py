"""From a picture to a training example: resize, crop, flip, scale – each a function of its Sample alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL.Image import Image, Resampling, Transpose

from sdjob.dataset import spread
from sdjob.images import ImageError, image_problem, undecodable
from sdjob.problem import JobError, Problem, bad_input
from sdtrain.order import Sample, draws
from sdtrain.sources import ImageSource

Interpolation = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]
_SAMPLED = 64


class PictureError(JobError):
    """A picture or caption that cannot be used, met in a loader process or in this one.

    Of an exception in a loader process, torch keeps the type and the text, and makes a new one from a
    text that ends with it; so this one can be made from such a text again.
    """

    def __init__(self, problems: Problem | Sequence[Problem] | str) -> None:
        super().__init__(_problem_in(problems) if isinstance(problems, str) else problems)


def _problem_in(text: str) -> Problem:
    """The problem that `str(problem)` was made from, at the end of a traceback."""
    subject, _, rest = text.rpartition(f"{PictureError.__name__}: ")[2].partition(": ")
    found, _, remedy = rest.partition("\n    → ")
    return bad_input(subject, found, remedy.strip())


@dataclass(frozen=True)
class TrainingImages(torch.utils.data.Dataset[dict[str, Any]]):
    """Training examples by their place in the sample stream, the same on every rank and in every worker."""

    source: ImageSource
    resolution: int
    center_crop: bool
    random_flip: bool
    interpolation: Interpolation
    seed: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        """`pixel_values` [3, resolution, resolution] in [-1, 1], `caption`, `name`, `sample`."""
        try:
            image = self.source.image(sample.index)
            caption = self.source.caption(sample.index) or ""
        except ImageError as error:
            raise PictureError(image_problem(self.source.name(sample.index), error)) from error
        except JobError as error:
            raise PictureError(error.problems) from error
        return {
            "pixel_values": to_tensor(self._transformed(image, sample)),
            "caption": caption,
            "name": self.source.name(sample.index),
            "sample": sample,
        }

    def _transformed(self, image: Image, sample: Sample) -> Image:
        crop = None if self.center_crop else draws(self.seed, sample, "crop")
        image = square(image, self.resolution, crop, self.interpolation)
        if self.random_flip and torch.rand((), generator=draws(self.seed, sample, "flip")) < 0.5:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        return image


def square(image: Image, side: int, place: torch.Generator | None, interpolation: Interpolation) -> Image:
    """The picture with its shorter side resized to `side`, and of that a square: at a random place, or,
    without a generator, the centre.

    Only what the crop keeps is resized: `box` is the crop in the pixels of the original.
    """
    short = min(image.size)
    width, height = (side * length // short for length in image.size)
    left, top = _offset(width - side, place), _offset(height - side, place)
    scale_x, scale_y = image.width / width, image.height / height
    box = (left * scale_x, top * scale_y, (left + side) * scale_x, (top + side) * scale_y)
    return image.resize((side, side), Resampling[interpolation.upper()], box=box)


def _offset(free: int, place: torch.Generator | None) -> int:
    return round(free / 2) if place is None else int(torch.randint(free + 1, (), generator=place))


def to_tensor(image: Image) -> torch.Tensor:
    """RGB → float32 [3, height, width] in [-1, 1]."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    planes = pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()  # while still small
    return planes.float().div_(127.5).sub_(1)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: `pixel_values` [batch, 3, height, width]; everything else as lists."""
    batch: dict[str, Any] = {key: [item[key] for item in items] for key in items[0]}
    return {**batch, "pixel_values": torch.stack(batch["pixel_values"])}


def verify(
    source: ImageSource, mode: Literal["sample", "all", "none"], rank: int, world_size: int
) -> list[Problem]:
    """The pictures of this rank's share that cannot be decoded; "sample": 64 in all, evenly spread."""
    if mode == "none":
        return []
    indices = spread(len(source), _SAMPLED if mode == "sample" else len(source))
    return undecodable(indices[rank::world_size], source.name, source.image)
