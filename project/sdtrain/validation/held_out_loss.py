"""The loss on held-out images at fixed timesteps and with fixed noise, so that its curve is smooth."""

from __future__ import annotations

import math

import torch

from sdtrain.data.sampling import Sample, generator
from sdtrain.model import attention
from sdtrain.model.generation import evaluating
from sdtrain.model.trainable_model import TrainableModel
from sdtrain.objective.diffusion import Noised, conditioning_of, loss_of
from sdtrain.runtime.heartbeat import Pulse
from sdtrain.training import Training
from sdtrain.validation.held_out_images import HeldOut

_TIMESTEPS = 4  # of each image, evenly spaced, since the loss depends strongly on the timestep


def loss(training: Training, held_out: HeldOut) -> float | None:
    """The mean squared error over all held-out images and timesteps, of the weights to export. Collective.

    Independent of the number of processes: a forward pass holds the timesteps of one image, and the sum is exact.
    All ranks make the same number of passes. None: asked to stop before the last one.
    """
    world, parts = training.world, training.parts
    trained_encoders = parts.text_encoders if training.spec.train_text_encoder else {}
    model = TrainableModel(parts.architecture, parts.denoiser, trained_encoders)
    rounds = math.ceil(held_out.count / world.size)
    losses: dict[int, float] = {}
    pulse = Pulse("validation loss")
    with (
        training.with_final_weights(),
        evaluating(parts),
        attention.chosen(training.spec.attention),
        torch.no_grad(),
    ):
        for index in range(world.rank, rounds * world.size, world.size):
            if world.any(bool(training.context.stop)):
                return None
            value = float(loss_of(model, _noised(training, held_out, index % held_out.count)))
            if index < held_out.count:  # the rest complete the last round
                losses[index] = value
            pulse()
    every = {index: value for of_rank in world.gather(losses) for index, value in of_rank.items()}
    return math.fsum(every.values()) / len(every)


def _noised(training: Training, held_out: HeldOut, index: int) -> Noised:
    """One image at all timesteps: the mean of its latent posterior, with noise that depends on seed and index."""
    parts, spec = training.parts, training.spec
    process = parts.process
    example = held_out.images[Sample(0, index, index, "held out")]
    with torch.autocast(parts.device.type, enabled=False):  # the VAE computes in its own type
        mean = parts.posterior(example["pixels"][None]).mean
    latents = parts.normalized(mean.float())
    latents = latents.expand(_TIMESTEPS, *latents.shape[1:])
    noise = torch.randn(latents.shape, generator=generator(spec.seed, 0, index, "noise/held out"))
    noise = noise.to(parts.device)
    timesteps = process.even_timesteps(_TIMESTEPS).to(parts.device)
    prompt = held_out.prompt if held_out.prompt is not None else example["caption"]
    takes_sizes = parts.architecture.takes_sizes
    time_ids = held_out.images.time_ids(example["sample"]).expand(_TIMESTEPS, -1) if takes_sizes else None
    return Noised(
        noisy_latents=process.add_noise(latents, noise, timesteps),
        timesteps=timesteps,
        conditioning=conditioning_of(parts, [prompt] * _TIMESTEPS, spec, time_ids),
        target=process.target(latents, noise, timesteps),
        weights=torch.ones(_TIMESTEPS, device=parts.device),
        sizes=(_TIMESTEPS,),
        stream_weights=(1.0,),
    )
