"""From a batch to its loss: each sample by its own random numbers, cached or computed, weighted by image and stream."""

from dataclasses import replace

import pytest
import torch

from sdjob.model.pipeline import find_pipeline
from sdjob.settings.run_spec import RunSpec
from sdtrain.data.batch import collated, random_inputs
from sdtrain.data.sampling import Sample
from sdtrain.model import load
from sdtrain.objective.diffusion import Noised, loss_of, noised

SPEC = RunSpec(pretrained_model_name_or_path="m", output_dir="o", seed=3, noise_offset=0.1)


@pytest.fixture(scope="module")
def parts(eps_model):
    source = find_pipeline(eps_model, None, allow_pickle=False)
    return load.load(source, "no", torch.device("cpu"), allow_pickle=False)


def examples(parts, *indices, weight=1.0):
    """Those of images in different grays, as the loader makes them."""
    return [
        {
            "pixels": torch.full((3, 32, 32), 25 * index, dtype=torch.uint8),
            "token_ids": {name: ids[0] for name, ids in parts.token_ids([f"a circle {index}"], 1).items()},
            "random": random_inputs(parts, SPEC).of(Sample(0, index, index, "captioned"), (32, 32)),
            "weight": weight,
            "name": str(index),
            "skipped": [],
        }
        for index in indices
    ]


def test_a_sample_does_not_depend_on_its_batch(parts):
    together = noised(parts, collated([examples(parts, 1, 2), examples(parts, 3)], [1.0, 1.0]), SPEC)
    assert together.sizes == (2, 1)
    for position, index in enumerate((1, 2, 3)):
        alone = noised(parts, collated([examples(parts, index)], [1.0]), SPEC)
        assert together.timesteps[position] == alone.timesteps[0]
        for name in ("noisy_latents", "target"):
            torch.testing.assert_close(getattr(together, name)[position], getattr(alone, name)[0])


def test_cached_inputs_give_the_same(parts):
    plain = collated([examples(parts, 1, 2)], [1.0])
    posterior = parts.posterior(plain.pixels).parameters
    encodings = parts.encode(plain.token_ids)
    cached = replace(plain, pixels=None, token_ids=None, posterior=posterior, encodings=encodings)
    one, other = noised(parts, plain, SPEC), noised(parts, cached, SPEC)
    assert torch.equal(one.noisy_latents, other.noisy_latents)
    assert torch.equal(one.conditioning["hidden_states"], other.conditioning["hidden_states"])


def test_weights_of_images_timesteps_and_streams_multiply(parts):
    spec = SPEC.model_copy(update={"snr_gamma": 5.0})
    first = [*examples(parts, 1, weight=2.0), *examples(parts, 2, weight=3.0)]
    both = noised(parts, collated([first, examples(parts, 3)], [1.0, 0.5]), spec)
    of_timesteps = parts.process.min_snr_weights(both.timesteps, 5.0)
    torch.testing.assert_close(both.weights, torch.tensor([2.0, 3.0, 1.0]) * of_timesteps)
    assert both.stream_weights == (1.0, 0.5)


def test_errors_are_compared_in_fp32():
    prediction, target = torch.linspace(-1, 1, 24).view(2, 3, 2, 2).bfloat16(), torch.ones(2, 3, 2, 2)
    batch = Noised(prediction, torch.zeros(2), {}, target, torch.ones(2), sizes=(2,), stream_weights=(1.0,))
    loss = loss_of(lambda latents, *_: latents, batch)  # type: ignore[arg-type]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ((prediction.float() - target) ** 2).mean())


def test_the_loss_is_the_weighted_sum_of_the_streams():
    target = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    batch = Noised(
        torch.zeros(3, 1, 1, 1),
        torch.zeros(3),
        {},
        target,
        weights=torch.tensor([1.0, 0.5, 1.0]),
        sizes=(2, 1),
        stream_weights=(1.0, 0.1),
    )
    loss = loss_of(lambda latents, *_: latents, batch)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx((1 + 0.5 * 4) / 2 + 0.1 * 9)
