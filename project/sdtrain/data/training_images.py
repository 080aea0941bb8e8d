"""From an image to a training example: resize, crop, flip, scale, as a function of its Sample alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image, Resampling, Transpose
from torch.utils.data import Dataset, Subset

from sdjob.dataset.images import ImageError, decode, image_problem, size_of, stored
from sdjob.dataset.text_files import LONGEST_CAPTION
from sdjob.dataset.verify import Examined, examine, spread
from sdjob.files import reason_of
from sdjob.problems import JobError, Problem, bad_input
from sdtrain.data.cache import Cached
from sdtrain.data.sampling import Sample, Size, sample_generator
from sdtrain.data.sources import ImageSource
from sdtrain.reporting.progress import MANY, Progress

Interpolation = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]
_SAMPLED = 64
_NAMED = 8


class SampleError(JobError):
    """An image or caption that cannot be used, in a loader process or in this one.

    For an exception in a loader process, torch creates another one of this type from a text that ends with its own;
    so the constructor also takes such a text.
    """

    def __init__(self, problems: Problem | Sequence[Problem] | str) -> None:
        super().__init__(_problem_in(problems) if isinstance(problems, str) else problems)


def too_many(names: Sequence[str], allowed: int) -> Problem:
    """The problem of more unusable images than allowed."""
    found = f"{len(names)} images cannot be used (max_bad_samples={allowed}): {', '.join(names[:_NAMED])}"
    remedy = "Replace them, remove them from the dataset, or allow more with max_bad_samples."
    return bad_input("max_bad_samples", found, remedy)


def _problem_in(text: str) -> Problem:
    """The problem whose `str` ends a traceback."""
    subject, _, rest = text.rpartition(f"{SampleError.__name__}: ")[2].partition(": ")
    found, _, remedy = rest.partition("\n    → ")
    return bad_input(subject, found, remedy.strip())


@dataclass(frozen=True)
class View:
    """An image cropped in the center: its size (width, height), mirrored or not."""

    index: int
    size: Size
    flip: bool


@dataclass(frozen=True)
class TrainingImages(Dataset[dict[str, Any]]):
    """Training examples by their position in the sample stream, the same in every process."""

    source: ImageSource
    resolution: int
    center_crop: bool
    random_flip: bool
    interpolation: Interpolation
    seed: int
    max_bad_samples: int = 0  # images that the next one of the dataset may replace
    bad: Mapping[int, Problem] = field(default_factory=dict)  # known to be unusable, by index
    latents: Cached[View] | None = None  # the latents of every view; None: examples have pixels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        """`pixels` uint8 [3, H, W] or `posterior` [2C, h, w]; `caption`, `name`, `sample`, `skipped`.

        An unusable image is replaced by the next usable one of the dataset: the same on every rank, after a resume, and
        whether images are read or cached. `skipped`: the problems of those that are replaced.
        """
        skipped: list[Problem] = []
        while True:
            index = (sample.index + len(skipped)) % len(self)
            try:
                if index in self.bad:
                    raise SampleError(self.bad[index])
                return {**self._example(replace(sample, index=index)), "skipped": skipped}
            except SampleError as error:
                if len(skipped) >= self._replaceable:
                    raise
                skipped += error.problems[:1]

    @property
    def _replaceable(self) -> int:
        """How many images others can replace."""
        return min(self.max_bad_samples, len(self) - 1)

    def without(self, bad: Mapping[int, Problem]) -> TrainingImages:
        """With more images known to be unusable. Raises JobError (66) if there are too many."""
        known = {**self.bad, **bad}
        if len(known) > self._replaceable:
            names = sorted(problem.subject for problem in known.values())
            summary = [too_many(names, self.max_bad_samples)] if 0 < self.max_bad_samples < len(known) else []
            raise JobError([*known.values(), *summary])
        return replace(self, bad=known) if bad else self

    def only(self, indices: Sequence[int]) -> TrainingImages:
        """Some of the images, which none of the others replaces."""
        bad = {number: self.bad[index] for number, index in enumerate(indices) if index in self.bad}
        source: ImageSource = Subset(self.source, indices)  # type: ignore[arg-type]  # any source will do
        return replace(self, source=source, bad={}).without(bad)

    def replacement(self, index: int) -> int:
        """The image itself, or the next that is not known to be bad."""
        while index in self.bad:
            index = (index + 1) % len(self)
        return index

    def _example(self, sample: Sample) -> dict[str, Any]:
        view = self.view(sample)
        image = self.latents[view] if self.latents else {"pixels": self.pixels(view, self._crop(sample))}
        caption, name = self.caption(sample.index), self.source[sample.index].name()
        return {**image, "caption": caption, "name": name, "sample": sample}

    def _crop(self, sample: Sample) -> torch.Generator | None:
        """The random numbers of the crop; None: in the center."""
        return None if self.center_crop else sample_generator(self.seed, sample, "crop")

    def view(self, sample: Sample) -> View:
        """The view that a sample shows of its image, if cropped in the center."""
        flip = (
            self.random_flip and torch.rand((), generator=sample_generator(self.seed, sample, "flip")) < 0.5
        )
        return View(sample.index, sample.size or self.square, bool(flip))

    def views(self, sizes: Callable[[int], Sequence[Size]] | None = None) -> Iterator[View]:
        """Every view that a sample can have, some twice because of replacements; `sizes`: of an image, by index."""
        for index in range(len(self)):
            for size in sizes(index) if sizes else (self.square,):
                for flip in (False, True) if self.random_flip else (False,):
                    yield View(self.replacement(index), size, flip)

    @property
    def square(self) -> Size:
        return self.resolution, self.resolution

    def pixels(self, view: View, crop: torch.Generator | None = None) -> torch.Tensor:
        """A view of an image, uint8 [3, height, width], cropped at a random position or in the center."""
        with self._named(view.index):
            image = decode(self.source[view.index].encoded())
        image = cropped(image, view.size, crop, self.interpolation)
        return to_tensor(image.transpose(Transpose.FLIP_LEFT_RIGHT) if view.flip else image)

    def caption(self, index: int) -> str:
        """The caption of an image, or "" where the dataset was opened without captions."""
        with self._named(index):
            return (self.source[index].caption() or "")[:LONGEST_CAPTION]

    def captions(self, limit: int) -> Iterator[str]:
        """Those of the first `limit` images, without unusable images."""
        for index in range(len(self))[:limit]:
            try:
                if index not in self.bad:
                    yield self.caption(index)
            except SampleError:
                if not self.max_bad_samples:
                    raise

    def size(self, index: int) -> Size:
        """Width and height of the original, upright."""
        with self._named(index):
            return size_of(self.source[index].encoded())

    def time_ids(self, sample: Sample) -> torch.Tensor:
        """The size conditioning of SDXL, [6]: height and width of the original, top and left of the crop in the
        resized and mirrored image, height and width of the crop."""
        view, original = self.view(sample), self.size(sample.index)
        (width, _), left, top = crop_of(original, view.size, self._crop(sample))
        left = width - view.size[0] - left if view.flip else left
        return torch.tensor([*original[::-1], top, left, *view.size[::-1]])

    def digest(self, index: int) -> str:
        """A hash of the encoded image."""
        with self._named(index):
            digest = hashlib.blake2b(digest_size=16)
            try:
                with stored(self.source[index].encoded()) as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise ImageError(reason_of(error)) from error
            return digest.hexdigest()

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        """Errors as SampleError with the name of the image."""
        try:
            yield
        except ImageError as error:
            raise SampleError(image_problem(self.source[index].name(), error)) from error
        except JobError as error:
            raise SampleError(error.problems) from error


def cropped(image: Image, size: Size, crop: torch.Generator | None, interpolation: Interpolation) -> Image:
    """The image resized to just cover a size, then cropped to it at a random position, or in the center (None).

    Only what the crop keeps is resized: `box` is the crop in the pixels of the original.
    """
    (width, height), left, top = crop_of(image.size, size, crop)
    scale_x, scale_y = image.width / width, image.height / height
    box = (left * scale_x, top * scale_y, (left + size[0]) * scale_x, (top + size[1]) * scale_y)
    return image.resize(size, Resampling[interpolation.upper()], box=box)


def crop_of(original: Size, size: Size, crop: torch.Generator | None) -> tuple[Size, int, int]:
    """The size that an image is resized to, just to cover a size, and left and top of the crop in it."""
    wide, high = size
    width, height = wide, wide * original[1] // original[0]
    if height < high:
        width, height = high * original[0] // original[1], high
    return (width, height), _offset(width - wide, crop), _offset(height - high, crop)


def _offset(free: int, crop: torch.Generator | None) -> int:
    return round(free / 2) if crop is None else int(torch.randint(free + 1, (), generator=crop))


def to_tensor(image: Image) -> torch.Tensor:
    """RGB → uint8 [3, height, width]: a quarter of the bytes that the device computes with."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def verify(
    source: ImageSource, mode: Literal["sample", "all", "none"], rank: int, world_size: int
) -> Examined:
    """What decoding this rank's slice of the images shows; "sample": 64 of all ranks, evenly spread."""
    indices = spread(len(source), {"none": 0, "sample": _SAMPLED, "all": len(source)}[mode])
    progress = Progress("check images", len(indices), shown=rank == 0 and len(indices) >= MANY)
    started = count(1)

    def encoded(index: int) -> Path | bytes:
        progress.show(min(next(started) * world_size, len(indices)))
        return source[index].encoded()

    return examine(indices[rank::world_size], lambda index: source[index].name(), encoded)
