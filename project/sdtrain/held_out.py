"""The loss on pictures that are not trained on, at fixed timesteps and with fixed noise: a stable curve."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from sdjob.spec import RunSpec
from sdtrain import architectures, attention, objective
from sdtrain.denoiser import Denoiser
from sdtrain.models import tokenize
from sdtrain.order import Sample, generator
from sdtrain.recipes import RECIPES
from sdtrain.recipes.base import find, open_images
from sdtrain.sample import evaluating
from sdtrain.training import HeldOut, Training
from sdtrain.world import World

_TIMESTEPS = 4  # of each picture, evenly over the schedule: the loss of one says little of another's


def open_held_out(spec: RunSpec, world: World) -> HeldOut | None:
    """The held-out pictures, looked at. Collective. Raises JobError (66)."""
    if not spec.validation_data_dir:
        return None
    recipe = RECIPES[spec.recipe]
    info = find(spec, spec.validation_data_dir, captions=recipe.captions)
    images = replace(open_images(spec, world, [info]), center_crop=True, random_flip=False)
    count = min(len(images), spec.max_validation_samples)
    return HeldOut(images, count, None if recipe.captions else spec.instance_prompt)


def loss(training: Training, held_out: HeldOut) -> float:
    """The mean squared error over all held-out pictures and timesteps, by the weights that are exported. Collective.

    A forward pass holds the timesteps of one picture, whoever computes it, and the sum goes by the order of
    the pictures: so the number is the same on any number of processes. All ranks make as many passes.
    """
    world, parts = training.world, training.parts
    trained_encoder = parts.text_encoder if training.spec.train_text_encoder else None
    denoiser = Denoiser(parts.unet, trained_encoder)
    rounds = math.ceil(held_out.count / world.size)
    errors: dict[int, float] = {}
    with training.averaged(), evaluating(parts), attention.chosen(training.spec.attention), torch.no_grad():
        for index in range(world.rank, rounds * world.size, world.size):
            error = _error(training, denoiser, held_out, index % held_out.count)
            if index < held_out.count:  # the others fill up the last round
                errors[index] = error
    every = {index: error for share in world.gather(errors) for index, error in share.items()}
    return math.fsum(every[index] for index in sorted(every)) / len(every)


def _error(training: Training, denoiser: Denoiser, held_out: HeldOut, index: int) -> float:
    """The mean error of one picture."""
    parts, spec = training.parts, training.spec
    schedule = parts.noise_schedule
    example = held_out.images[Sample(0, index, index, "held out")]
    pixel_values = example["pixel_values"][None].to(parts.device, parts.vae.dtype)
    with torch.autocast(parts.device.type, enabled=False):  # the VAE computes in its own type
        mean = parts.vae.encode(pixel_values).latent_dist.mean
    latents = mean.float() * float(parts.vae.config.scaling_factor)
    latents = latents.expand(_TIMESTEPS, *latents.shape[1:])
    noise = torch.randn(latents.shape, generator=generator(spec.seed, 0, index, "noise/held out"))
    noise = noise.to(parts.device)
    count = int(schedule.config.num_train_timesteps)
    timesteps = torch.tensor([(2 * k + 1) * count // (2 * _TIMESTEPS) for k in range(_TIMESTEPS)])
    timesteps = timesteps.to(parts.device)
    prompt = held_out.prompt if held_out.prompt is not None else example["caption"]
    prompts = [prompt] * _TIMESTEPS
    added = None
    if denoiser.text_encoder is not None:
        conditioning = tokenize(parts.tokenizer, prompts, spec.prompt_chunks).to(parts.device)
    else:
        time_ids = held_out.images.time_ids(example["sample"]).expand(_TIMESTEPS, -1)
        architecture = architectures.of(parts)
        conditioning, added = architecture.condition(parts, prompts, spec.prompt_chunks, time_ids)
    noise_pred = denoiser(schedule.add_noise(latents, noise, timesteps), timesteps, conditioning, added)
    kind = schedule.config.prediction_type
    wanted = objective.target(kind, schedule, latents, noise, timesteps)
    return float(objective.squared_error(noise_pred, wanted).mean())
