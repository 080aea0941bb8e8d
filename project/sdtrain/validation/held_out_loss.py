"""The loss on held-out images at fixed timesteps and with fixed noise, so that its curve is smooth."""

from __future__ import annotations

import math

import torch

from sdtrain import architectures
from sdtrain.context import Training
from sdtrain.data.sampling import Sample, generator
from sdtrain.generate import evaluating
from sdtrain.model import attention
from sdtrain.model.denoiser import Denoiser
from sdtrain.objective import loss as objective
from sdtrain.objective.diffusion import Noised, conditioning, loss_of
from sdtrain.runtime.heartbeat import Pulse
from sdtrain.validation.held_out_images import HeldOut

_TIMESTEPS = 4  # of each image, evenly spaced, since the loss depends strongly on the timestep


def loss(training: Training, held_out: HeldOut) -> float | None:
    """The mean squared error over all held-out images and timesteps, of the weights to export. Collective.

    Independent of the number of processes: a forward pass holds the timesteps of one image, and the sum is exact.
    All ranks make the same number of passes. None: asked to stop before the last one.
    """
    world, parts = training.world, training.parts
    trained_encoders = parts.text_encoders if training.spec.train_text_encoder else {}
    denoiser = Denoiser(architectures.of(parts), parts.unet, trained_encoders)
    rounds = math.ceil(held_out.count / world.size)
    losses: dict[int, float] = {}
    pulse = Pulse("validation loss")
    with training.averaged(), evaluating(parts), attention.chosen(training.spec.attention), torch.no_grad():
        for index in range(world.rank, rounds * world.size, world.size):
            if world.any(bool(training.stop)):
                return None
            value = float(loss_of(denoiser, _noised(training, held_out, index % held_out.count)))
            if index < held_out.count:  # the rest complete the last round
                losses[index] = value
            pulse()
    every = {index: value for of_rank in world.gather(losses) for index, value in of_rank.items()}
    return math.fsum(every.values()) / len(every)


def _noised(training: Training, held_out: HeldOut, index: int) -> Noised:
    """One image at all timesteps: the mean of its latent posterior, with noise that depends on seed and index."""
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
    takes_sizes = architectures.of(parts).takes_sizes
    time_ids = held_out.images.time_ids(example["sample"]).expand(_TIMESTEPS, -1) if takes_sizes else None
    return Noised(
        noisy_latents=schedule.add_noise(latents, noise, timesteps),
        timesteps=timesteps,
        conditioning=conditioning(parts, [prompt] * _TIMESTEPS, spec, time_ids),
        wanted=objective.target(schedule.config.prediction_type, schedule, latents, noise, timesteps),
        weights=None,
        sizes=(_TIMESTEPS,),
        stream_weights=(1.0,),
    )
