"""The mathematics of the objective: prediction targets, weights and errors of DDPMs.

x0: latents, eps: noise, z_t = alpha_t x0 + sigma_t eps (Ho et al. 2020, arXiv:2006.11239, eq. 4).
Shapes: latents [B, C, h, w], timesteps [B]. Pure: knows neither ranks nor files.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional as F


class NoiseSchedule(Protocol):
    """The noise schedule, as a scheduler of diffusers has it."""

    alphas_cumprod: torch.Tensor  # alpha_t^2, [T]

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor: ...

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor: ...


def target(
    prediction_type: str,
    schedule: NoiseSchedule,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
) -> torch.Tensor:
    """What the denoiser has to predict, [B, C, h, w]: eps, or v = alpha_t eps - sigma_t x0.

    v: Salimans & Ho 2022, arXiv:2202.00512, appendix D.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return schedule.get_velocity(latents, noise, timesteps)
    raise ValueError(f"unknown prediction type {prediction_type!r}")


def signal_to_noise(schedule: NoiseSchedule, timesteps: torch.Tensor) -> torch.Tensor:
    """SNR(t) = alpha_t^2 / sigma_t^2, [B]; 0 at the end of a schedule with zero terminal SNR (Lin et al. 2024,
    arXiv:2305.08891)."""
    alpha_squared = schedule.alphas_cumprod.to(timesteps.device)[timesteps].float()
    return alpha_squared / (1 - alpha_squared)


def min_snr_weights(prediction_type: str, snr: torch.Tensor, gamma: float) -> torch.Tensor:
    """The weight of each sample's error, [B]: min(SNR, gamma) / SNR for eps, min(SNR, gamma) / (SNR + 1) for v.

    Hang et al. 2023, arXiv:2303.09556, section 3.4 and appendix. Finite at an SNR of zero too: 1 for eps, the limit,
    and 0 for v.
    """
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    raise ValueError(f"unknown prediction type {prediction_type!r}")


def squared_error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample, in fp32, [B]."""
    return F.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))


def weighted_loss(errors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """Sum over streams of weight × mean error: with two of them, instance loss and prior loss.

    Prior preservation: Ruiz et al. 2022, arXiv:2208.12242, eq. 2, with the weight lambda on the prior.
    """
    return torch.stack([weight * error.mean() for error, weight in zip(errors, weights, strict=True)]).sum()
