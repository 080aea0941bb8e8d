"""Noise processes: how latents are noised in training, and what the denoiser then has to predict.

Pure: knows neither ranks nor files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sdtrain.objective import loss


class NoiseProcess(Protocol):
    """The training objective of an architecture. Latents and noise [B, C, h, w], timesteps [B]."""

    def sample_timestep(self, generator: torch.Generator) -> torch.Tensor:
        """A random timestep, [1]."""

    def even_timesteps(self, count: int) -> torch.Tensor:
        """Timesteps at the middles of `count` equal parts of the process, [count]."""

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor: ...

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor: ...

    def min_snr_weights(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """The weight of each sample's error, [B]."""


@dataclass(frozen=True)
class Ddpm:
    """Denoising diffusion (Ho et al. 2020, arXiv:2006.11239), with uniform timesteps."""

    schedule: Any  # diffusers' DDPMScheduler
    prediction_type: str

    def sample_timestep(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(self._steps, (1,), generator=generator)

    def even_timesteps(self, count: int) -> torch.Tensor:
        return torch.tensor([(2 * k + 1) * self._steps // (2 * count) for k in range(count)])

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        noisy: torch.Tensor = self.schedule.add_noise(latents, noise, timesteps)
        return noisy

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return loss.target(self.prediction_type, self.schedule, latents, noise, timesteps)

    def min_snr_weights(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        snr = loss.signal_to_noise(self.schedule, timesteps)
        return loss.min_snr_weights(self.prediction_type, snr, gamma)

    @property
    def _steps(self) -> int:
        return int(self.schedule.config.num_train_timesteps)
