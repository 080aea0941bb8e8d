"""From an image to a training example: resize, crop, flip, scale – each a function of its Sample alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from PIL.Image import Image, Resampling, Transpose

from sdjob.dataset.images import ImageError, decode, image_problem, size_of, undecodable
from sdjob.dataset.verify import spread
from sdjob.files import reason_of
from sdjob.problems import JobError, Problem, bad_input
from sdtrain.data.sampling import Sample, Size, draws
from sdtrain.data.sources import ImageSource, PartialSource
from sdtrain.runtime.heartbeat import Pulse

Interpolation = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]
_SAMPLED = 64
_NAMED = 8


class SampleError(JobError):
    """An image or caption that cannot be used, met in a loader process or in this one.

    Of an exception in a loader process, torch keeps the type and the text, and makes a new one from a
    text that ends with it; so this one can be made from such a text again.
    """

    def __init__(self, problems: Problem | Sequence[Problem] | str) -> None:
        super().__init__(_problem_in(problems) if isinstance(problems, str) else problems)


def too_many(names: Sequence[str], allowed: int) -> Problem:
    """That more images than allowed cannot be used."""
    found = f"{len(names)} images cannot be used (max_bad_samples={allowed}): {', '.join(names[:_NAMED])}"
    remedy = "Replace them, take them out of the dataset, or allow more with max_bad_samples."
    return bad_input("dataset", found, remedy)


def _problem_in(text: str) -> Problem:
    """The problem that `str(problem)` was made from, at the end of a traceback."""
    subject, _, rest = text.rpartition(f"{SampleError.__name__}: ")[2].partition(": ")
    found, _, remedy = rest.partition("\n    → ")
    return bad_input(subject, found, remedy.strip())


@dataclass(frozen=True)
class View:
    """What is seen of an image when it is not cropped at random: its size (width, height), mirrored or not."""

    index: int
    size: Size
    flip: bool


@dataclass(frozen=True)
class TrainingImages(torch.utils.data.Dataset[dict[str, Any]]):
    """Training examples by their place in the sample stream, the same on every rank and in every worker."""

    source: ImageSource
    resolution: int
    center_crop: bool
    random_flip: bool
    interpolation: Interpolation
    seed: int
    max_bad_samples: int = 0  # images that the next one of the dataset may stand in for
    bad: Mapping[int, Problem] = field(default_factory=dict)  # known not to be usable, by index

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        """`pixel_values` [3, height, width] in [-1, 1], `caption`, `name`, `sample`, `passed_over`."""
        return self.first_usable(sample, self._example)

    def first_usable(self, sample: Sample, example: Callable[[Sample], dict[str, Any]]) -> dict[str, Any]:
        """The example of a sample, or of the image that stands in for its own; and `passed_over`.

        An image that cannot be used is replaced by the next one of the dataset that can: by its place in
        the dataset alone, so the same on every rank, after a resume, and whether it is read or cached.
        """
        passed_over: list[Problem] = []
        while True:
            index = (sample.index + len(passed_over)) % len(self)
            try:
                if index in self.bad:
                    raise SampleError(self.bad[index])
                return {**example(replace(sample, index=index)), "passed_over": passed_over}
            except SampleError as error:
                if len(passed_over) >= self._replaceable:
                    raise
                passed_over += error.problems[:1]

    @property
    def _replaceable(self) -> int:
        """Images that others can stand in for."""
        return min(self.max_bad_samples, len(self) - 1)

    def without(self, bad: Mapping[int, Problem]) -> TrainingImages:
        """The same, with more images known not to be usable. Raises JobError (66) where these are too many."""
        known = {**self.bad, **bad}
        if len(known) > self._replaceable:
            names = sorted(problem.subject for problem in known.values())
            summary = [too_many(names, self.max_bad_samples)] if 0 < self.max_bad_samples < len(known) else []
            raise JobError([*known.values(), *summary])
        return replace(self, bad=known) if bad else self

    def only(self, indices: Sequence[int]) -> TrainingImages:
        """Some of the images, for which none of the others stands in."""
        bad = {place: self.bad[index] for place, index in enumerate(indices) if index in self.bad}
        return replace(self, source=PartialSource(self.source, tuple(indices)), bad={}).without(bad)

    def stand_in(self, index: int) -> int:
        """The image itself, or the next that is not known to be bad."""
        while index in self.bad:
            index = (index + 1) % len(self)
        return index

    def _example(self, sample: Sample) -> dict[str, Any]:
        crop = None if self.center_crop else draws(self.seed, sample, "crop")
        return {"pixel_values": self.pixels(self.view(sample), crop), **self.about(sample)}

    def view(self, sample: Sample) -> View:
        """What a sample shows of its image."""
        flip = self.random_flip and torch.rand((), generator=draws(self.seed, sample, "flip")) < 0.5
        return View(sample.index, sample.size or self.square, bool(flip))

    def views(self, sizes: Callable[[int], Sequence[Size]] | None = None) -> Iterator[View]:
        """Every view that a sample can have, some twice where an image stands in; `sizes`: of each, by index."""
        for index in range(len(self)):
            for size in sizes(index) if sizes else (self.square,):
                for flip in (False, True) if self.random_flip else (False,):
                    yield View(self.stand_in(index), size, flip)

    @property
    def square(self) -> Size:
        return self.resolution, self.resolution

    def pixels(self, view: View, crop: torch.Generator | None = None) -> torch.Tensor:
        """A view of an image, [3, height, width] in [-1, 1], cropped at a random place or in the centre."""
        with self._named(view.index):
            image = decode(self.source.encoded(view.index))
        image = cropped(image, view.size, crop, self.interpolation)
        return to_tensor(image.transpose(Transpose.FLIP_LEFT_RIGHT) if view.flip else image)

    def about(self, sample: Sample) -> dict[str, Any]:
        """What there is to know of a sample besides its pixels."""
        return {
            "caption": self.caption(sample.index),
            "name": self.source.name(sample.index),
            "sample": sample,
        }

    def caption(self, index: int) -> str:
        """The caption of an image, or "" where the dataset was opened without captions."""
        with self._named(index):
            return self.source.caption(index) or ""

    def captions(self, limit: int) -> Iterator[str]:
        """Those of the first `limit` images, but for images that others stand in for."""
        for index in range(len(self))[:limit]:
            try:
                if index not in self.bad:
                    yield self.caption(index)
            except SampleError:
                if not self.max_bad_samples:
                    raise

    def size(self, index: int) -> Size:
        """Of the image as it is stored, upright."""
        with self._named(index):
            return size_of(self.source.encoded(index))

    def time_ids(self, sample: Sample) -> torch.Tensor:
        """What SDXL is told of a sample's sizes, [6]: height and width of the original, top and left of the crop
        in the resized and mirrored image, height and width of what is seen."""
        view, original = self.view(sample), self.size(sample.index)
        crop = None if self.center_crop else draws(self.seed, sample, "crop")
        (width, _), left, top = crop_of(original, view.size, crop)
        left = width - view.size[0] - left if view.flip else left
        return torch.tensor([*original[::-1], top, left, *view.size[::-1]])

    def digest(self, index: int) -> str:
        """A hash of the image as it is stored."""
        with self._named(index):
            encoded = self.source.encoded(index)
            try:
                content = encoded if isinstance(encoded, bytes) else encoded.read_bytes()
            except OSError as error:
                raise ImageError(reason_of(error)) from error
            return hashlib.blake2b(content, digest_size=16).hexdigest()

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        """An image or caption that cannot be read is named."""
        try:
            yield
        except ImageError as error:
            raise SampleError(image_problem(self.source.name(index), error)) from error
        except JobError as error:
            raise SampleError(error.problems) from error


def cropped(image: Image, size: Size, place: torch.Generator | None, interpolation: Interpolation) -> Image:
    """The image resized to just cover a size, and of that the size itself: at a random place, or, without a
    generator, the centre.

    Only what the crop keeps is resized: `box` is the crop in the pixels of the original.
    """
    (width, height), left, top = crop_of(image.size, size, place)
    scale_x, scale_y = image.width / width, image.height / height
    box = (left * scale_x, top * scale_y, (left + size[0]) * scale_x, (top + size[1]) * scale_y)
    return image.resize(size, Resampling[interpolation.upper()], box=box)


def crop_of(original: Size, size: Size, place: torch.Generator | None) -> tuple[Size, int, int]:
    """The size that an image is resized to, just to cover a size, and where in it the crop begins: left, top."""
    wide, high = size
    width, height = wide, wide * original[1] // original[0]
    if height < high:
        width, height = high * original[0] // original[1], high
    return (width, height), _offset(width - wide, place), _offset(height - high, place)


def _offset(free: int, place: torch.Generator | None) -> int:
    return round(free / 2) if place is None else int(torch.randint(free + 1, (), generator=place))


def to_tensor(image: Image) -> torch.Tensor:
    """RGB → float32 [3, height, width] in [-1, 1]."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    planes = pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()  # while still small
    return planes.float().div_(127.5).sub_(1)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: tensors stacked, such as `pixel_values` [batch, 3, height, width]; everything else as lists."""
    batch: dict[str, Any] = {key: [item[key] for item in items] for key in items[0]}
    return {k: torch.stack(v) if isinstance(v[0], torch.Tensor) else v for k, v in batch.items()}


def verify(
    source: ImageSource, mode: Literal["sample", "all", "none"], rank: int, world_size: int
) -> dict[int, Problem]:
    """The images of this rank's share that cannot be decoded, and why; "sample": 64 in all, evenly spread."""
    if mode == "none":
        return {}
    indices = spread(len(source), _SAMPLED if mode == "sample" else len(source))
    pulse = Pulse("check images")

    def image(index: int) -> Image:
        pulse()
        return decode(source.encoded(index))

    return undecodable(indices[rank::world_size], source.name, image)
