"""The least memory that a run needs: exact sums for Stable Diffusion 1.4, and what would fit instead."""

import math
from pathlib import Path

import pytest

from sdjob.model import memory_estimate, shapes
from sdjob.model.pipeline import Part, PipelineFolder
from sdjob.model.weights import Tensor
from sdjob.settings import compatibility
from sdjob.settings.compatibility import Topology
from sdjob.settings.run_spec import RunSpec

UNET, TEXT, VAE = 859_520_964, 123_060_480, 83_653_863
FROZEN = TEXT + VAE
GPU = Topology("cuda", 1, bf16=True)
EIGHT = Topology("cuda", 8, bf16=True)
GB = 10**9


def part(name, config):
    expected = getattr(shapes, name)(config)
    tensors = {key: Tensor(tensor.shape, Path(name)) for key, tensor in expected.items()}
    count = sum(math.prod(tensor.shape) for tensor in tensors.values())
    return Part(Path(name), "", num_bytes=4 * count, num_parameters=count, config=config, tensors=tensors)


@pytest.fixture(scope="module")
def sd14():
    """Stable Diffusion 1.4, as far as its headers and configs go."""
    parts = {
        "unet": part("unet", {"cross_attention_dim": 768, "sample_size": 64}),
        "vae": part("vae", {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}),
        "text_encoder": part("text_encoder", {"hidden_size": 768, "intermediate_size": 3072}),
        "tokenizer": Part(Path("tokenizer"), ""),
    }
    return PipelineFolder(Path("sd14"), "StableDiffusionPipeline", "epsilon", parts)


def spec(**values):
    return RunSpec(pretrained_model_name_or_path="m", output_dir="o", **values)


def needed(model, topology=GPU, **values):
    return memory_estimate.estimate(spec(**values), model, topology)


def static(need):
    return (need.weights, need.gradients, need.moments, need.average, need.copies, need.frozen)


N, S = UNET, math.ceil(UNET / 8)


@pytest.mark.parametrize(
    ("topology", "settings", "expected"),
    [
        (GPU, {}, (4 * N, 4 * N, 8 * N, 0, 2 * N, 2 * FROZEN)),
        (GPU, {"mixed_precision": "no"}, (4 * N, 4 * N, 8 * N, 0, 0, 4 * FROZEN)),
        (EIGHT, {"use_ema": True}, (4 * N, 4 * N, 8 * N, 4 * N, 2 * N, 2 * FROZEN)),
        (EIGHT, {"plugin": "low_level_zero"}, (4 * S + 2 * N, 2 * S, 8 * S, 0, 0, 2 * FROZEN)),
        (EIGHT, {"plugin": "gemini", "use_ema": True}, (6 * S, 0, 8 * S, 4 * S, 0, 2 * FROZEN)),
        (EIGHT, {"plugin": "gemini", "placement": "cpu"}, (0, 0, 0, 0, 0, 2 * FROZEN)),
        (EIGHT, {"plugin": "low_level_zero", "cpu_offload": True}, (2 * N, 2 * S, 0, 0, 0, 2 * FROZEN)),
        (EIGHT, {"plugin": "fsdp", "cpu_offload": True}, (0, 0, 0, 0, 0, 2 * FROZEN)),
        (
            EIGHT,
            {"plugin": "fsdp", "reshard_after_forward": False},
            (4 * S, 4 * S, 8 * S, 0, 2 * N, 2 * FROZEN),
        ),
        (EIGHT, {"plugin": "fsdp"}, (4 * S, 4 * S, 8 * S, 0, 0, 2 * FROZEN)),
        (
            GPU,
            {"train_text_encoder": True},
            (4 * (N + TEXT), 4 * (N + TEXT), 8 * (N + TEXT), 0, 2 * (N + TEXT), 2 * VAE),
        ),
    ],
)
def test_what_each_strategy_divides(sd14, topology, settings, expected):
    assert static(needed(sd14, topology, **settings)) == expected


def test_a_lora_trains_little_and_keeps_the_rest_in_half_precision(sd14):
    lora = 3_188_736  # rank 16 on to_q, to_k, to_v and to_out.0 of all 16 transformers, as peft counts them
    need = needed(sd14, lora_rank=16)
    assert static(need) == (4 * lora, 4 * lora, 8 * lora, 0, 0, 2 * (FROZEN + UNET))


def test_gradients_and_activations_are_there_together_only_if_gradients_stay(sd14):
    """In a single batch of a single process the activations go as the gradients come."""
    alone = needed(sd14)
    assert not alone.gradients_stay
    assert alone.gradients > alone.copies + alone.activations
    assert alone.total == alone.static
    for held in (needed(sd14, gradient_accumulation_steps=2), needed(sd14, EIGHT)):
        assert held.total == held.static + held.copies + held.activations
    large = needed(sd14, train_batch_size=16)
    assert large.total == large.static - large.gradients + large.copies + large.activations


def test_activations_grow_with_images_and_area(sd14):
    one = needed(sd14).activations
    assert one == 1_130_496_000
    assert needed(sd14, train_batch_size=3).activations == 3 * one
    assert needed(sd14, with_prior_preservation=True, class_prompt="dog").activations == 2 * one
    assert needed(sd14, resolution=1024).activations == 4 * one
    assert needed(sd14, gradient_checkpointing=True).activations == 224_460_800
    assert needed(sd14, plugin="fsdp").activations < one  # its norms are in half precision too


def test_of_pickles_nothing_is_known(sd14):
    unet = Part(Path("unet"), "", num_parameters=UNET, pickled=True)
    pickled = PipelineFolder(sd14.path, sd14.class_name, "epsilon", {**sd14.parts, "unet": unet})
    assert needed(pickled) is None
    assert needed(pickled, lora_rank=4) is None


def test_the_settings_that_would_fit_are_checked_with_the_same_sums(sd14):
    job = spec(train_batch_size=16, gradient_accumulation_steps=2, use_ema=True)
    assert memory_estimate.fitting(job, sd14, GPU, 80 * GB)[0] == "gradient_checkpointing=1"
    found = memory_estimate.fitting(job, sd14, GPU, 25 * GB)
    assert found == [
        "batch_size=2 gradient_accumulation_steps=16",
        "lora_rank=16",
    ]
    for text in found:
        change = dict(word.split("=") for word in text.split())
        renamed = {"batch_size": "train_batch_size"}
        other = RunSpec.model_validate(
            {**job.model_dump(), **{renamed.get(name, name): value for name, value in change.items()}}
        )
        assert memory_estimate.estimate(other, sd14, GPU).total <= 0.9 * 25 * GB
        assert compatibility.problems(other, GPU) == []


def test_where_only_a_lora_fits_only_that_is_said(sd14):
    assert memory_estimate.fitting(spec(), sd14, GPU, 8 * GB) == ["lora_rank=16"]
    assert memory_estimate.fitting(spec(), sd14, GPU, GB) == []
