"""Kinds of models by the pipeline class that a model's index names. Another kind is another module, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdtrain.architectures.base import Architecture
from sdtrain.architectures.stable_diffusion import StableDiffusion
from sdtrain.architectures.stable_diffusion_xl import StableDiffusionXL

if TYPE_CHECKING:
    from sdtrain.model.load import Parts

_ARCHITECTURES: dict[str, Architecture] = {
    "StableDiffusionPipeline": StableDiffusion(),
    "StableDiffusionXLPipeline": StableDiffusionXL(),
}


def of(parts: Parts) -> Architecture:
    """The architecture of a loaded pipeline."""
    return _ARCHITECTURES[parts.class_name]
