"""Attention backends: which one computes, and which are refused before training starts."""

import pytest
import torch

from sdjob.problems import JobError
from sdtrain.model import attention

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def denoiser(eps_model):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(eps_model, subfolder="unet")


def test_a_backend_that_runs_is_accepted_and_reported(denoiser):
    attention.prove("math", denoiser, CPU, torch.float32)
    assert attention.running("math", denoiser, CPU, torch.float32) == "math"
    kernels = attention.running("auto", denoiser, CPU, torch.float32)
    assert kernels.split(" ")[0] in ("flash", "efficient", "math")


@pytest.mark.parametrize("name", ["cudnn", "efficient"])
def test_a_backend_that_does_not_run_is_69(denoiser, name):
    with pytest.raises(JobError) as error:
        attention.prove(name, denoiser, CPU, torch.float32)
    assert error.value.code == 69
    assert name in str(error.value) and "attention=auto" in str(error.value)


def test_head_sizes_are_found(denoiser):
    assert attention.head_sizes(denoiser) == [4, 8]  # 8 and 16 channels, two heads
    assert attention.head_sizes(torch.nn.Linear(1, 1)) == []
