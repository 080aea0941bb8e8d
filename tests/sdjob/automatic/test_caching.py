"""Tests of caching and choice: whether images and prompts are encoded once.

Only where that changes nothing, pays and fits.
"""

from dataclasses import replace

import pytest

from sdjob.automatic import caching
from sdjob.automatic.caching import Facts
from sdjob.automatic.example_sizes import CacheEntries
from sdjob.settings.run_spec import RunSpec

MB = 10**6
LATENTS = CacheEntries("cache_latents", "latents", "auto", 100, 100, MB)
PROMPTS = CacheEntries("cache_text_embeddings", "prompts", "auto", 1, 100, MB)
LARGE = Facts(1, 1, memory=2000 * MB, free=0, fixed_crops=None)
CROPPED = {"center_crop": True}
SMALL = {"memory": 999 * MB}


@pytest.mark.parametrize(
    ("settings", "facts", "value", "reason"),
    [
        (CROPPED, {}, "memory", "each image is used 4 times"),
        ({**CROPPED, "cache_latents": "disk"}, {}, "disk", "as set"),
        ({**CROPPED, "cache_latents": "no"}, {}, "no", "as set"),
        ({**CROPPED, "max_train_steps": 100}, {}, "no", "100 images to encode, for 100 uses in all steps"),
        (
            {**CROPPED, "max_train_steps": 50, "train_batch_size": 2},
            {"world_size": 3},
            "memory",
            "used 3 times",
        ),
        ({**CROPPED, "max_train_steps": 75, "with_prior_preservation": True}, {}, "memory", "used 1.5 times"),
        (CROPPED, SMALL, "no", "100 MB would take too much of the memory and of the disk"),
        (CROPPED, {"processes": 3}, "no", "100 MB would take too much"),  # each has its own
        (CROPPED, {**SMALL, "free": 400 * MB}, "disk", "used 4 times"),
        (CROPPED, {**SMALL, "free": 399 * MB}, "no", "too much"),
        (CROPPED, {"memory": None, "free": None}, "no", "too much"),
        ({}, {"fixed_crops": True}, "memory", "used 4 times"),
        ({}, {"fixed_crops": False}, "no", "center_crop=0 crops an image differently each time"),
        ({}, {}, "auto", "only if no image has to be cropped"),
        ({"max_train_steps": 100}, {}, "no", "100 uses"),  # no reason to look at the sizes of images
    ],
)
def test_latents(settings, facts, value, reason):
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o", **settings)
    choice = caching.latents(spec, LATENTS, replace(LARGE, **facts))
    assert choice.value == value and reason in choice.reason


@pytest.mark.parametrize(
    ("settings", "facts", "value", "reason"),
    [
        ({}, {}, "memory", "each prompt is used 4 times"),
        ({"cache_text_embeddings": "disk"}, {}, "disk", "as set"),
        ({"train_text_encoder": True}, {}, "no", "the text encoder is trained"),
        ({"max_train_steps": 99}, {}, "no", "100 prompts to encode, for 99 uses in all steps"),
        ({}, {**SMALL, "free": 400 * MB}, "disk", "used 4 times"),
    ],
)
def test_prompts(settings, facts, value, reason):
    spec = RunSpec(pretrained_model_name_or_path="m", output_dir="o", **settings)
    choice = caching.prompts(spec, PROMPTS, replace(LARGE, **facts))
    assert choice.value == value and reason in choice.reason
