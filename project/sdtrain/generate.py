"""Generate images from any loaded model: for validation and for the class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from PIL import Image

from sdjob.settings.run_spec import RunSpec
from sdtrain import architectures
from sdtrain.architectures.base import Sampling
from sdtrain.model import tokenize
from sdtrain.model.load import Parts


def sampling(spec: RunSpec) -> Sampling:
    """How the images of a run are generated."""
    return Sampling(
        spec.resolution,
        spec.num_inference_steps,
        spec.guidance_scale,
        spec.sample_batch_size,
        spec.prompt_chunks,
    )


@contextmanager
def evaluating(parts: Parts) -> Iterator[None]:
    """What is trained in evaluation mode, its forward pass in the type of the run."""
    modes = [(part, part.training) for part in (parts.unet, *parts.text_encoders.values())]
    for part, _ in modes:
        part.eval()
    mixed = parts.dtype != torch.float32
    try:
        with torch.autocast(parts.device.type, parts.dtype) if mixed else nullcontext():
            yield
    finally:
        for part, training in modes:
            part.train(training)


def generate(parts: Parts, prompts: list[str], seeds: list[int], how: Sampling) -> Iterator[Image.Image]:
    """One image per prompt and seed, in their order; an image does not depend on its batch."""
    architecture = architectures.of(parts)
    with evaluating(parts), torch.inference_mode():
        for start in range(0, len(prompts), how.batch_size):
            batch = slice(start, start + how.batch_size)
            # Encoded as in training, so that a long prompt means the same.
            wanted, nothing = (
                tokenize.encoded(parts, tokenize.token_ids(parts, texts, how.prompt_chunks))
                for texts in (prompts[batch], [""] * len(prompts[batch]))
            )
            yield from architecture.draw(parts, wanted, nothing, seeds[batch], how)
