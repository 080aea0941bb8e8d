"""Noise processes against their formulas."""

import pytest
import torch
from diffusers import DDPMScheduler

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


def test_target(process):
    alpha = process.schedule.alphas_cumprod[TIMESTEPS].sqrt().view(2, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    wanted = {"epsilon": NOISE, "v_prediction": alpha * NOISE - sigma * LATENTS}[process.prediction_type]
    torch.testing.assert_close(process.target(LATENTS, NOISE, TIMESTEPS), wanted)


def test_unknown_prediction_type_is_an_error():
    with pytest.raises(ValueError, match="flow"):
        Ddpm(DDPMScheduler(), "flow")


def test_signal_to_noise(process):
    alpha = process.schedule.alphas_cumprod[TIMESTEPS]
    torch.testing.assert_close(process.signal_to_noise(TIMESTEPS), alpha / (1 - alpha))
    assert process.signal_to_noise(TIMESTEPS.to("meta")).device.type == "meta"


def test_min_snr_weights(process, monkeypatch):
    """By the definition: min(SNR, gamma) on the error of x0, seen from the error of eps and of v."""
    snr, least = torch.tensor([0.01, 1.0, 5.0, 80.0]), torch.tensor([0.01, 1.0, 5.0, 5.0])
    monkeypatch.setattr(Ddpm, "signal_to_noise", lambda _, timesteps: snr[timesteps])
    wanted = {"epsilon": least / snr, "v_prediction": least / (snr + 1)}[process.prediction_type]
    torch.testing.assert_close(process.min_snr_weights(torch.arange(4), 5.0), wanted)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_weights_stay_finite_where_only_noise_is_left(prediction):
    process = Ddpm(DDPMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True), prediction)
    snr = process.signal_to_noise(torch.arange(1000))
    assert snr[-1] == 0 < snr[-2]
    weights = process.min_snr_weights(torch.arange(1000), 5.0)
    assert weights.isfinite().all() and (weights >= 0).all()
    assert weights[-1] == {"epsilon": 1, "v_prediction": 0}[prediction]
    torch.testing.assert_close(weights[-1], weights[-2], atol=1e-4, rtol=0)  # the limit, not a cliff


def test_timesteps_cover_the_schedule():
    process = Ddpm(DDPMScheduler(num_train_timesteps=8), "epsilon")
    assert process.even_timesteps(4).tolist() == [1, 3, 5, 7]
    assert process.even_timesteps(4).dtype == torch.int64
    generator = torch.Generator().manual_seed(0)
    assert {int(process.sample_timestep(generator)) for _ in range(200)} == set(range(8))
