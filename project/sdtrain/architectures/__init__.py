"""Architectures: what each family of models does. Its facts that need no torch are in sdjob/model/architectures.py.

Start reading: base.py.
May import: torch, diffusers, sdjob.model, sdtrain.model.tokenize, sdtrain.objective.process.
"""

from __future__ import annotations

from sdtrain.architectures.base import Architecture
from sdtrain.architectures.stable_diffusion import StableDiffusion
from sdtrain.architectures.stable_diffusion_xl import StableDiffusionXL

ARCHITECTURES: dict[str, Architecture] = {
    architecture.facts.class_name: architecture for architecture in (StableDiffusion(), StableDiffusionXL())
}
