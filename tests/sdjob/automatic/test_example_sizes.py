"""The bytes of what is cached of images and prompts, and of a batch, for Stable Diffusion 1.4."""

import pytest

from sdjob.automatic import example_sizes
from sdjob.automatic.example_sizes import cache_entries
from tests.sdjob.model.test_memory_estimate import GPU, sd14, spec

__all__ = ["sd14"]


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({"cache_latents": "auto", "cache_text_embeddings": "auto"}, []),  # not decided yet
        ({"cache_latents": "memory"}, ["10 latents × 65.5 kB = 655 kB in the memory of each process"]),
        ({"cache_latents": "disk"}, ["10 latents × 65.7 kB = 657 kB on disk"]),  # with its part of a header
        ({"cache_latents": "memory", "random_flip": True, "mixed_precision": "no"}, ["20 latents × 131 kB"]),
        ({"cache_latents": "memory", "with_prior_preservation": True}, ["110 latents × 65.5 kB"]),
        ({"cache_latents": "memory", "aspect_ratio_buckets": True}, ["10 latents × 49.2 kB"]),
        ({"cache_text_embeddings": "memory"}, ["1 prompt × 118 kB"]),  # 77 × 768 in half precision
        (
            {"cache_text_embeddings": "memory", "max_token_length": 225, "with_prior_preservation": True},
            ["2 prompts × 355 kB"],
        ),
        (
            {"recipe": "text_to_image", "cache_text_embeddings": "memory", "proportion_empty_prompts": 0.1},
            ["up to 11 prompts × 118 kB"],
        ),
    ],
)
def test_the_entries_of_caches(sd14, settings, lines):
    found = [str(entries) for entries in cache_entries(spec(**settings), sd14, 10, GPU)]
    assert [text[: len(line)] for text, line in zip(found, lines, strict=True)] == lines


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, 3 * 512**2 + 2 * 4 * 64**2 * 4),  # pixels of one byte, fp32 noise of the latent and for it
        ({"with_prior_preservation": True, "train_batch_size": 3}, 6 * (3 * 512**2 + 2 * 4 * 64**2 * 4)),
        ({"input_perturbation": 0.1}, 3 * 512**2 + 3 * 4 * 64**2 * 4),
        ({"cache_latents": "disk"}, 2 * 4 * 64**2 * 2 + 2 * 4 * 64**2 * 4),
        ({"cache_text_embeddings": "memory"}, 3 * 512**2 + 2 * 4 * 64**2 * 4 + 77 * 768 * 2),
    ],
)
def test_a_batch_holds_images_or_latents_and_noise(sd14, settings, size):
    assert example_sizes.batch(spec(**settings), sd14, GPU) == size


def test_of_an_unknown_model_the_pixels_are_known():
    assert example_sizes.batch(spec(resolution=64), None, GPU) == 3 * 64**2
