"""Noise processes: how latents are noised in training, and what the denoiser then has to predict.

Pure: knows neither ranks nor files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch


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
        """The weight of each sample's error, [B]. Only asked of processes that predict epsilon or v."""


@dataclass(frozen=True)
class Ddpm:
    """Denoising diffusion with uniform timesteps: z_t = alpha_t x0 + sigma_t eps, of latents x0 and noise eps.

    Ho et al. 2020, arXiv:2006.11239, eq. 4.
    """

    schedule: Any  # diffusers' DDPMScheduler
    prediction_type: str

    def __post_init__(self) -> None:
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"unknown prediction type {self.prediction_type!r}")

    def sample_timestep(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(self._steps, (1,), generator=generator)

    def even_timesteps(self, count: int) -> torch.Tensor:
        return torch.tensor([(2 * k + 1) * self._steps // (2 * count) for k in range(count)])

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        noisy: torch.Tensor = self.schedule.add_noise(latents, noise, timesteps)
        return noisy

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """eps, or v = alpha_t eps - sigma_t x0 (Salimans & Ho 2022, arXiv:2202.00512, appendix D)."""
        if self.prediction_type == "epsilon":
            return noise
        velocity: torch.Tensor = self.schedule.get_velocity(latents, noise, timesteps)
        return velocity

    def signal_to_noise(self, timesteps: torch.Tensor) -> torch.Tensor:
        """SNR(t) = alpha_t^2 / sigma_t^2, [B]; 0 at the end of a schedule with zero terminal SNR (Lin et al. 2024,
        arXiv:2305.08891)."""
        alpha_squared = self.schedule.alphas_cumprod.to(timesteps.device)[timesteps].float()
        snr: torch.Tensor = alpha_squared / (1 - alpha_squared)
        return snr

    def min_snr_weights(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """min(SNR, gamma) / SNR for eps, min(SNR, gamma) / (SNR + 1) for v.

        Hang et al. 2023, arXiv:2303.09556, section 3.4 and appendix. Finite at an SNR of zero too: 1 for eps, the
        limit, and 0 for v.
        """
        snr = self.signal_to_noise(timesteps)
        if self.prediction_type == "epsilon":
            return (gamma / snr).clamp(max=1)
        return snr.clamp(max=gamma) / (snr + 1)

    @property
    def _steps(self) -> int:
        return int(self.schedule.config.num_train_timesteps)
