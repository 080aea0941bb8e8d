"""Generate images from a pipeline in memory: for validation, for the class, and for the command sdtrain.generate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from PIL import Image
from torch import nn

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
    away = [part for part in (parts.vae, *parts.text_encoders.values()) if not _is_on(part, parts.device)]
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


def _is_on(part: nn.Module, device: torch.device) -> bool:
    return next(part.parameters()).device.type == device.type


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
