"""The schedulers of models that were trained as DDPMs: Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDIMScheduler, DDPMScheduler

from sdtrain.objective.process import Ddpm


def schedulers(folder: Path, *, zero_snr: bool) -> tuple[Ddpm, Any]:
    """The noise process of training, and the scheduler that generates."""
    rescaled = {"rescale_betas_zero_snr": True} if zero_snr else {}
    schedule = DDPMScheduler.from_pretrained(folder, **rescaled)
    return Ddpm(schedule, str(schedule.config.prediction_type)), _sampler(folder, zero_snr=zero_snr)


def _sampler(folder: Path, *, zero_snr: bool) -> Any:
    """The pipeline's scheduler. With zero terminal SNR it must start at the last timestep (Lin et al. 2024,
    arXiv:2305.08891, section 3.3); a scheduler that cannot is replaced by DDIM.
    """
    config = json.loads((folder / "scheduler_config.json").read_text())
    index = json.loads((folder.parent / "model_index.json").read_text())
    sampler = getattr(diffusers, config.get("_class_name", index["scheduler"][1]))
    if not zero_snr:
        return sampler.from_pretrained(folder)
    if "rescale_betas_zero_snr" not in inspect.signature(sampler.__init__).parameters:
        sampler = DDIMScheduler
    return sampler.from_pretrained(folder, rescale_betas_zero_snr=True, timestep_spacing="trailing")
