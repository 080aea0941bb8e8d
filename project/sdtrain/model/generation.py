"""Generate images from a pipeline in memory: for validation, for the class, and for the command sdtrain.generate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from PIL import Image

from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import GenerationSettings, Parts


def generation_settings(spec: RunSpec) -> GenerationSettings:
    """How the images of a run are generated."""
    return GenerationSettings(
        (spec.resolution, spec.resolution),
        spec.num_inference_steps,
        spec.guidance_scale,
        spec.sample_batch_size,
        spec.prompt_chunks,
    )


@contextmanager
def evaluating(parts: Parts) -> Iterator[None]:
    """Trainable parts in evaluation mode, their forward pass in the type of the run, and all parts on the device."""
    movable = (parts.vae, *parts.text_encoders.values())
    away = [part for part in movable if next(part.parameters()).device.type != parts.device.type]
    for part in away:
        part.to(parts.device)
    modes = [(part, part.training) for part in parts.trainable.values()]
    for part, _ in modes:
        part.eval()
    mixed = parts.dtype != torch.float32
    try:
        with torch.autocast(parts.device.type, parts.dtype) if mixed else nullcontext():
            yield
    finally:
        for part, training in modes:
            part.train(training)
        for part in away:
            part.to("cpu")


def generate(
    parts: Parts, prompts: Sequence[str], seeds: Sequence[int], how: GenerationSettings
) -> Iterator[Image.Image]:
    """One image per prompt and seed, in their order, `how.batch_size` at once: the batch decides no more than the last
    bits of an image."""
    for start in range(0, len(prompts), how.batch_size):
        batch = slice(start, start + how.batch_size)
        with evaluating(parts), torch.inference_mode():  # left before a yield, or the caller would be in them
            # Encoded as in training, so that a long prompt means the same.
            encoded, negative = (
                parts.encode(parts.token_ids(texts, how.prompt_chunks))
                for texts in (prompts[batch], [how.negative_prompt] * len(prompts[batch]))
            )
            images = list(parts.architecture.sample(parts, encoded, negative, list(seeds[batch]), how))
        yield from images
