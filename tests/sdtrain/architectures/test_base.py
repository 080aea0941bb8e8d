"""Tests of base, ddpm, stable_diffusion and stable_diffusion_xl: what a pipeline in memory answers."""

from types import SimpleNamespace

import pytest
import torch

from sdjob.model.pipeline import find_pipeline
from sdjob.model.vae import encoded_at_once
from sdtrain.architectures.base import in_chunks
from sdtrain.model import load


@pytest.fixture(params=["sd", "xl"], scope="module")
def parts(request, eps_model, xl_model):
    source = find_pipeline({"sd": eps_model, "xl": xl_model}[request.param], None, allow_pickle=False)
    return load.load(source, "no", torch.device("cpu"), allow_pickle=False)


def test_components_are_those_of_the_pipeline(parts):
    assert parts.components.keys() == parts.architecture.facts.components.keys()


def test_a_prompt_is_encoded_alike_in_any_batch(parts):
    prompts = ["a red cross", "a circle " * 60]
    together = parts.encode(parts.token_ids(prompts, 2))
    for index, prompt in enumerate(prompts):
        for name, value in parts.encode(parts.token_ids([prompt], 2)).items():
            torch.testing.assert_close(together[name][index], value[0])


def test_latents_are_normalized_by_the_vaes_config(parts, monkeypatch):
    latents = torch.ones(1, 4, 2, 2)
    factor = parts.vae.config.scaling_factor
    assert torch.equal(parts.normalized(latents), latents * factor)
    monkeypatch.setitem(parts.vae.config, "shift_factor", 0.25)
    assert torch.equal(parts.normalized(latents), latents * 0.75 * factor)


def test_the_posterior_is_that_of_the_vae(parts):
    pixels = torch.arange(11 * 3 * 32 * 32).remainder(256).to(torch.uint8).view(11, 3, 32, 32)
    mean = parts.posterior(pixels).mean  # in chunks
    torch.testing.assert_close(mean, parts.vae.encode(pixels / 127.5 - 1).latent_dist.mean)


def test_the_vae_sees_every_value_as_it_was_scaled_on_the_host(parts, monkeypatch):
    """To the bit: (x / 127.5 - 1) in fp32, which for every byte is (x / 255 - 0.5) / 0.5 to rounding."""
    seen = []
    monkeypatch.setattr(
        parts.vae,
        "encode",
        lambda images: (
            seen.append(images)
            or SimpleNamespace(latent_dist=SimpleNamespace(parameters=torch.zeros(len(images), 8, 8, 8)))
        ),
    )
    values = torch.arange(256, dtype=torch.uint8).repeat(12).view(1, 3, 32, 32)
    parts.posterior(values)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], values.float().div_(127.5).sub_(1))
    torch.testing.assert_close(seen[0], (values / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)
    assert (seen[0].min(), seen[0].max()) == (-1, 1)


@pytest.mark.parametrize(("side", "count"), [(64, 8), (512, 8), (768, 3), (1024, 2), (2048, 1)])
def test_fewer_large_images_are_encoded_at_once(side, count):
    assert encoded_at_once(side, side) == count


def test_chunks_are_joined_prompt_by_prompt():
    encoded = torch.arange(24).view(4, 3, 2)  # two prompts of two chunks
    joined = in_chunks(encoded, 2)
    assert joined.shape == (2, 6, 2)
    assert torch.equal(joined[1], encoded[2:].reshape(6, 2))
