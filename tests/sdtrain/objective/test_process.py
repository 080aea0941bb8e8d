"""Noise processes against their formulas."""

import pytest
import torch
from diffusers import DDPMScheduler

from sdtrain.objective import loss
from sdtrain.objective.process import Ddpm

LATENTS = torch.linspace(-1, 1, 24).view(2, 3, 2, 2)
NOISE = torch.linspace(2, -2, 24).view(2, 3, 2, 2)
TIMESTEPS = torch.tensor([10, 900])


@pytest.fixture(params=["epsilon", "v_prediction"])
def process(request):
    return Ddpm(DDPMScheduler(prediction_type=request.param), request.param)


def test_noise_and_target_give_back_the_latents(process):
    """z = alpha x0 + sigma eps; from eps or v, and z, follows x0."""
    noisy = process.add_noise(LATENTS, NOISE, TIMESTEPS)
    target = process.target(LATENTS, NOISE, TIMESTEPS)
    alpha = process.schedule.alphas_cumprod[TIMESTEPS].sqrt().view(2, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    latents = (noisy - sigma * target) / alpha
    if process.prediction_type == "v_prediction":
        latents = alpha * noisy - sigma * target
    torch.testing.assert_close(latents, LATENTS, atol=1e-4, rtol=1e-4)


def test_weights_are_those_of_the_prediction(process):
    snr = loss.signal_to_noise(process.schedule, TIMESTEPS)
    wanted = loss.min_snr_weights(process.prediction_type, snr, 5.0)
    torch.testing.assert_close(process.min_snr_weights(TIMESTEPS, 5.0), wanted)


def test_timesteps_cover_the_schedule():
    process = Ddpm(DDPMScheduler(num_train_timesteps=8), "epsilon")
    assert process.even_timesteps(4).tolist() == [1, 3, 5, 7]
    generator = torch.Generator().manual_seed(0)
    assert {int(process.sample_timestep(generator)) for _ in range(200)} == set(range(8))
