"""The objective against its formulas, written out."""

import pytest
import torch
from diffusers import DDPMScheduler

from sdtrain.objective import loss

LATENTS = torch.linspace(-1, 1, 24).view(2, 3, 2, 2)
NOISE = torch.linspace(2, -2, 24).view(2, 3, 2, 2)
TIMESTEPS = torch.tensor([10, 900])


def by_formula(kind: str, schedule: DDPMScheduler) -> torch.Tensor:
    alpha = schedule.alphas_cumprod[TIMESTEPS].sqrt().view(2, 1, 1, 1)
    sigma = (1 - schedule.alphas_cumprod[TIMESTEPS]).sqrt().view(2, 1, 1, 1)
    return {"epsilon": NOISE, "v_prediction": alpha * NOISE - sigma * LATENTS}[kind]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_target(kind):
    schedule = DDPMScheduler(prediction_type=kind)
    found = loss.target(kind, schedule, LATENTS, NOISE, TIMESTEPS)
    torch.testing.assert_close(found, by_formula(kind, schedule))


def test_unknown_prediction_type_is_an_error():
    with pytest.raises(ValueError, match="flow"):
        loss.target("flow", DDPMScheduler(), LATENTS, NOISE, TIMESTEPS)


def test_squared_error_is_the_mean_of_each_sample_in_fp32():
    found = loss.squared_error(LATENTS.bfloat16(), NOISE)
    assert found.dtype == torch.float32
    wanted = [((LATENTS.bfloat16().float() - NOISE)[i] ** 2).mean() for i in (0, 1)]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_weighted_loss_is_instance_plus_weight_times_prior():
    instance, prior = torch.tensor([1.0, 3.0]), torch.tensor([10.0, 20.0])
    assert loss.weighted_loss([instance, prior], [1.0, 0.25]).item() == 2.0 + 0.25 * 15.0
    assert loss.weighted_loss([instance], [1.0]).item() == 2.0
    with pytest.raises(ValueError, match="shorter"):
        loss.weighted_loss([instance, prior], [1.0])


def test_signal_to_noise():
    schedule = DDPMScheduler()
    alpha = schedule.alphas_cumprod[TIMESTEPS]
    torch.testing.assert_close(loss.signal_to_noise(schedule, TIMESTEPS), alpha / (1 - alpha))
    assert loss.signal_to_noise(schedule, TIMESTEPS.to("meta")).device.type == "meta"


def test_min_snr_weights():
    """By the definition: min(SNR, gamma) on the error of x0, seen from the error of eps and of v."""
    snr = torch.tensor([0.01, 1.0, 5.0, 80.0])
    least = torch.tensor([0.01, 1.0, 5.0, 5.0])
    torch.testing.assert_close(loss.min_snr_weights("epsilon", snr, 5.0), least / snr)
    torch.testing.assert_close(loss.min_snr_weights("v_prediction", snr, 5.0), least / (snr + 1))
    with pytest.raises(ValueError, match="flow"):
        loss.min_snr_weights("flow", snr, 5.0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_weights_stay_numbers_where_only_noise_is_left(kind):
    schedule = DDPMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    snr = loss.signal_to_noise(schedule, torch.arange(1000))
    assert snr[-1] == 0 < snr[-2]
    weights = loss.min_snr_weights(kind, snr, 5.0)
    assert weights.isfinite().all() and (weights >= 0).all()
    assert weights[-1] == {"epsilon": 1, "v_prediction": 0}[kind]
    torch.testing.assert_close(weights[-1], weights[-2], atol=1e-4, rtol=0)  # the limit, not a cliff
