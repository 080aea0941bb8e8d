"""The objective against its formulas, written out."""

import pytest
import torch
from diffusers import DDPMScheduler

from sdtrain import objective

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
    found = objective.target(kind, schedule, LATENTS, NOISE, TIMESTEPS)
    torch.testing.assert_close(found, by_formula(kind, schedule))


def test_unknown_prediction_type_is_an_error():
    with pytest.raises(ValueError, match="flow"):
        objective.target("flow", DDPMScheduler(), LATENTS, NOISE, TIMESTEPS)


def test_squared_error_is_the_mean_of_each_sample_in_fp32():
    found = objective.squared_error(LATENTS.bfloat16(), NOISE)
    assert found.dtype == torch.float32
    wanted = [((LATENTS.bfloat16().float() - NOISE)[i] ** 2).mean() for i in (0, 1)]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_weighted_loss_is_instance_plus_weight_times_prior():
    instance, prior = torch.tensor([1.0, 3.0]), torch.tensor([10.0, 20.0])
    assert objective.weighted_loss([instance, prior], [1.0, 0.25]).item() == 2.0 + 0.25 * 15.0
    assert objective.weighted_loss([instance], [1.0]).item() == 2.0
