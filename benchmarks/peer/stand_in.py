"""The parts of torchvision that the example scripts use: image → tensor, by Pillow and torch, as in torchvision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, Resampling, Transpose


class InterpolationMode(Enum):
    """Names of Pillow's filters."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def compose(steps: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def composed(value: Any) -> Any:
        for step in steps:
            value = step(value)
        return value

    return composed


def resize(
    size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR
) -> Callable[[Image], Image]:
    """Resize the shorter side to `size`; an image that has it already is not changed."""

    def resized(image: Image) -> Image:
        scale = size / min(image.size)
        target = round(image.width * scale), round(image.height * scale)
        return image if image.size == target else image.resize(target, Resampling[interpolation.name])

    return resized


def center_crop(size: int) -> Callable[[Image], Image]:
    def cropped(image: Image) -> Image:
        return _crop(image, size, (image.width - size) // 2, (image.height - size) // 2)

    return cropped


def random_crop(size: int) -> Callable[[Image], Image]:
    def cropped(image: Image) -> Image:
        left = int(torch.randint(image.width - size + 1, ()))
        return _crop(image, size, left, int(torch.randint(image.height - size + 1, ())))

    return cropped


def _crop(image: Image, size: int, left: int, top: int) -> Image:
    return image.crop((left, top, left + size, top + size))


def random_horizontal_flip() -> Callable[[Image], Image]:
    def flipped(image: Image) -> Image:
        return image.transpose(Transpose.FLIP_LEFT_RIGHT) if torch.rand(()) < 0.5 else image

    return flipped


def to_tensor() -> Callable[[Image], torch.Tensor]:
    def tensor(image: Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().div(255)

    return tensor


def normalize(mean: Sequence[float], std: Sequence[float]) -> Callable[[torch.Tensor], torch.Tensor]:
    def normalized(tensor: torch.Tensor) -> torch.Tensor:
        means, stds = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        return tensor.clone().sub_(means).div_(stds)

    return normalized


transforms = SimpleNamespace(
    InterpolationMode=InterpolationMode,
    Compose=compose,
    Resize=resize,
    CenterCrop=center_crop,
    RandomCrop=random_crop,
    RandomHorizontalFlip=random_horizontal_flip,
    ToTensor=to_tensor,
    Normalize=normalize,
    Lambda=lambda function: function,
)
