"""Generated images: a function of prompt and seed."""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image, ImageChops

from sdjob.model.pipeline import find_pipeline
from sdtrain.architectures.base import GenerationSettings
from sdtrain.model import generation, load

HOW = GenerationSettings(size=(32, 32), inference_steps=2, guidance_scale=3.0, batch_size=2)


@pytest.fixture(scope="module")
def parts(eps_model):
    source = find_pipeline(eps_model, None, allow_pickle=False)
    return load.load(source, "no", torch.device("cpu"), allow_pickle=False)


@pytest.fixture(scope="module")
def xl_parts(xl_model):
    source = find_pipeline(xl_model, None, allow_pickle=False)
    return load.load(source, "no", torch.device("cpu"), allow_pickle=False)


def distance(one: Image.Image, other: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def test_an_image_depends_on_prompt_and_seed_alone(parts):
    first, second, third = generation.generate(parts, ["a", "b", "a"], [1, 1, 2], HOW)
    (alone,) = generation.generate(parts, ["b"], [1], HOW)
    assert distance(alone, second) <= 1  # rounding of a batch of another size
    assert distance(first, second) > 1 < distance(first, third)


def test_prompts_mean_what_they_mean_to_the_pipeline(parts):
    pipeline = StableDiffusionPipeline(**parts.components, safety_checker=None, feature_extractor=None)
    (wanted,) = pipeline(
        "a red cross",
        height=32,
        width=32,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(1),
    ).images
    (found,) = generation.generate(parts, ["a red cross"], [1], HOW)
    assert distance(found, wanted) == 0


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("prompt", ["a red cross", ""])
def test_prompts_mean_what_they_mean_to_the_pipeline_of_xl(xl_parts, prompt, zeros):
    """Without a negative prompt it uses zeros, or the encoding of the empty prompt."""
    parts = replace(xl_parts, index={"force_zeros_for_empty_prompt": zeros})
    pipeline = StableDiffusionXLPipeline(**parts.components, force_zeros_for_empty_prompt=zeros)
    given = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 3.0}
    (wanted,) = pipeline(prompt, generator=torch.Generator().manual_seed(1), **given).images
    (found,) = generation.generate(parts, [prompt], [1], HOW)
    assert distance(found, wanted) == 0


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_the_end_of_a_long_prompt_counts_where_it_is_encoded_in_chunks(parts, xl_parts, kind):
    parts = {"sd": parts, "xl": xl_parts}[kind]
    prompts = [f"{'a red cross ' * 40}{ending}" for ending in ("on a black ground", "on a white ground")]
    cut = list(generation.generate(parts, prompts, [1, 1], HOW))
    assert distance(*cut) == 0
    whole = list(generation.generate(parts, prompts, [1, 1], replace(HOW, prompt_chunks=3)))
    assert distance(*whole) > 0


def test_generating_leaves_the_modes_of_the_parts(parts):
    parts.denoiser.train()
    list(generation.generate(parts, ["a"], [1], HOW))
    assert parts.denoiser.training
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    parts.denoiser.eval()
    list(generation.generate(parts, ["a"], [1], HOW))
    assert not parts.denoiser.training


def test_generating_does_not_move_the_global_random_state(parts):
    state = torch.random.get_rng_state()
    list(generation.generate(parts, ["a"], [1], HOW))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_negative_prompt_means_what_it_means_to_the_pipeline(parts, xl_parts, kind):
    parts = {"sd": parts, "xl": xl_parts}[kind]
    of_kind = {"sd": StableDiffusionPipeline, "xl": StableDiffusionXLPipeline}[kind]
    more = {"safety_checker": None, "feature_extractor": None} if kind == "sd" else {}
    (wanted,) = of_kind(**parts.components, **more)(
        "a red cross",
        negative_prompt="a blue square",
        height=32,
        width=40,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(1),
    ).images
    how = replace(HOW, size=(32, 40), negative_prompt="a blue square")
    (found,) = generation.generate(parts, ["a red cross"], [1], how)
    assert found.size == (40, 32) and distance(found, wanted) == 0
