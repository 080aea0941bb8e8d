"""Tests of memory_estimate: exact sums for Stable Diffusion 1.4, and checkpoints.

What training really holds is measured in tests/sdtrain/tools/test_memory.py."""

import math
from functools import partial
from pathlib import Path

import pytest

from sdjob.model import memory_estimate
from sdjob.model.memory_estimate import OutputSizes, output_sizes
from sdjob.model.pipeline import PipelineFolder
from sdjob.model.weights import Part, Tensor
from sdjob.settings.compatibility import Topology
from tests.support import single
from tests.support.specs import spec

UNET, TEXT, VAE = 859_520_964, 123_060_480, 83_653_863
FROZEN = TEXT + VAE
GPU = Topology("cuda", 1, bf16=True)
EIGHT = Topology("cuda", 8, bf16=True)
GB = 10**9


def part(name):
    shapes = single.published_tensors(single.SD_1)[name]
    tensors = {key: Tensor(shape, Path(name)) for key, shape in shapes.items()}
    count = sum(map(math.prod, shapes.values()))
    config = single.config_of(single.SD_1, name)
    return Part(Path(name), "", num_bytes=4 * count, num_parameters=count, config=config, tensors=tensors)


@pytest.fixture(scope="module")
def sd14():
    """Stable Diffusion 1.4, from its headers and configs."""
    parts = {
        **{name: part(name) for name in ("unet", "vae", "text_encoder")},
        "tokenizer": Part(Path("tokenizer"), ""),
    }
    return PipelineFolder(Path("sd14"), "StableDiffusionPipeline", "epsilon", parts)


def needed(model, topology=GPU, **values):
    return memory_estimate.estimate(spec(**values), model, topology)


def static(need):
    return (need.weights, need.gradients, need.optimizer_state, need.ema, need.copies, need.frozen)


N, S = UNET, math.ceil(UNET / 8)


@pytest.mark.parametrize(
    ("topology", "settings", "expected"),
    [
        (GPU, {}, (6 * N, 4 * N, 8 * N, 0, 0, 2 * FROZEN)),
        (GPU, {"weights_dtype": "fp32"}, (4 * N, 4 * N, 8 * N, 0, 2 * N, 2 * FROZEN)),
        (GPU, {"mixed_precision": "no"}, (4 * N, 4 * N, 8 * N, 0, 0, 4 * FROZEN)),
        (EIGHT, {"use_ema": True}, (6 * N, 4 * N, 8 * N, 4 * N, 0, 2 * FROZEN)),
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
            (6 * (N + TEXT), 4 * (N + TEXT), 8 * (N + TEXT), 0, 0, 2 * VAE),
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
    """With norms in fp32, as autocast computes them."""
    autocast = partial(needed, weights_dtype="fp32")
    one = autocast(sd14).activations
    assert one == 1_209_139_200
    assert autocast(sd14, train_batch_size=3).activations == 3 * one
    assert autocast(sd14, with_prior_preservation=True, class_prompt="dog").activations == 2 * one
    assert autocast(sd14, resolution=1024).activations == 4 * one
    assert autocast(sd14, gradient_checkpointing=True).activations == 242_319_360
    assert needed(sd14, plugin="fsdp").activations < one  # its norms are in half precision too
    assert needed(sd14).activations == needed(sd14, plugin="fsdp").activations


def test_of_pickles_nothing_is_known(sd14):
    unet = Part(Path("unet"), "", num_parameters=UNET, pickled=True)
    pickled = PipelineFolder(sd14.path, sd14.class_name, "epsilon", {**sd14.parts, "unet": unet})
    assert needed(pickled) is None
    assert needed(pickled, lora_rank=4) is None


# --- checkpoints and the result ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "existing", "more"),
    [
        ({}, [], 4),
        ({"max_train_steps": 401}, [], 5),  # the last step leaves one too
        ({}, [100, 200], 2),  # those that the run goes on from are there already
        ({}, [100], 3),
        ({}, [250], 2),  # left by a stop
        ({}, [400], 0),
        ({"resume": "never"}, [200], 4),  # kept alongside, so no space is gained
        ({"checkpoints_total_limit": 2}, [], 3),  # the new one is whole before the oldest goes
        ({"checkpoints_total_limit": 2}, [100, 200], 1),
        ({"checkpoints_total_limit": 2}, [100], 2),
        ({"checkpoints_total_limit": 2}, [400], 0),
    ],
)
def test_checkpoints_to_come_besides_those_that_exist(settings, existing, more):
    job = spec(**{"max_train_steps": 400, "checkpointing_steps": 100} | settings)
    assert memory_estimate.checkpoints_to_come(job, existing) == more


def shaped(**shapes) -> PipelineFolder:
    """A pipeline whose U-Net has these weights in fp32, and nothing else has any."""
    tensors = {f"down.{name}.weight": Tensor(shape, Path("unet")) for name, shape in shapes.items()}
    count = sum(math.prod(shape) for shape in shapes.values())
    unet = Part(Path("unet"), "", num_bytes=4 * count, num_parameters=count, tensors=tensors)
    return PipelineFolder(Path("m"), "StableDiffusionPipeline", "epsilon", {"unet": unet})


@pytest.mark.parametrize(
    ("settings", "checkpoint", "result"),
    [
        ({}, 3 * 4 * 400, 4 * 400),  # weights and two moments
        ({"use_ema": True}, 4 * 4 * 400, 4 * 400),
        ({"optimizer": "adamw8bit"}, (4 + 2) * 400, 4 * 400),
        ({"optimizer": "prodigy"}, 5 * 4 * 400, 4 * 400),
        ({"export_dtype": "fp16"}, 3 * 4 * 400, 2 * 400),
        ({"export_single_file": True}, 3 * 4 * 400, 2 * 4 * 400),
        ({"lora_rank": 4}, 3 * 4 * 4 * (8 + 32), 2 * 4 * 4 * (8 + 32)),  # in two layouts
        ({"lora_rank": 4, "export_dtype": "fp16"}, 3 * 4 * 4 * (8 + 32), 2 * 2 * 4 * (8 + 32)),
        (
            {"lora_rank": 4, "lora_target_modules": ("conv",)},
            3 * 4 * 4 * (4 + 4 * 9),
            2 * 4 * 4 * (4 + 4 * 9),
        ),
    ],
)
def test_the_sizes_of_a_checkpoint_and_of_the_result(settings, checkpoint, result):
    model = shaped(to_k=(8, 32), conv=(4, 4, 3, 3))
    assert output_sizes(spec(**settings), model) == OutputSizes(checkpoint, result)


def test_parts_that_are_not_trained_are_copied_as_they_are():
    """A VAE of 10 numbers in half precision: fp32 for the trained U-Net only, fp16 for everything."""
    model = shaped(to_k=(8, 32))
    vae = Part(Path("vae"), "", num_bytes=20, num_parameters=10)
    model = PipelineFolder(model.path, model.class_name, "epsilon", {**model.parts, "vae": vae})
    assert output_sizes(spec(), model).result == 4 * 8 * 32 + 20
    assert output_sizes(spec(export_dtype="bf16"), model).result == 2 * 8 * 32 + 20


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({}, 4), ({"max_train_steps": 401}, 5), ({"checkpoints_total_limit": 2}, 2)],
)
def test_checkpoints_at_the_end(settings, kept):
    job = spec(**{"max_train_steps": 400, "checkpointing_steps": 100} | settings)
    assert memory_estimate.checkpoints_kept(job) == kept


def test_encoding_images_counts_where_it_is_the_largest(sd14):
    """In parts of 8 images of 512 × 512."""
    light = partial(needed, sd14, lora_rank=8, gradient_checkpointing=True)
    need = light()
    assert need.encoding == 5 * 2 * 128 * 512**2 > need.copies + need.activations
    assert need.total == need.static - need.gradients + need.encoding
    assert str(need).endswith("+ encoding of images 336 MB")
    assert light(train_batch_size=64).encoding == 8 * need.encoding
    assert light(resolution=1024, train_batch_size=64).encoding == 2 * 4 * need.encoding
    assert "encoding" not in str(needed(sd14))


def test_what_is_cached_needs_no_encoder_in_steps(sd14):
    both = {"cache_latents": "disk", "cache_text_embeddings": "memory"}
    small = {"lora_rank": 8, "gradient_checkpointing": True}
    cached = needed(sd14, **small, **both)
    assert cached.frozen == 2 * UNET
    # Encoded before there are moments of the LoRA, with the encoders still there.
    assert cached.encoding == 8 * 5 * 2 * 128 * 512**2 + 2 * FROZEN - cached.optimizer_state
    assert needed(sd14, **both).encoding == 0  # the moments are larger
    assert needed(sd14, cache_latents="disk").frozen == 2 * TEXT


@pytest.mark.parametrize(("budget", "settings"), [(24, {"optimizer": "adamw8bit"}), (8, {"lora_rank": 16})])
def test_what_fits_into_the_memory_of_a_gpu(sd14, budget, settings):
    """In GB, with a tenth for the context, workspaces and fragmentation."""
    assert needed(sd14, **settings).total <= 0.9 * budget * GB
