"""The loss on held-out images at fixed timesteps and with fixed noise, so that its curve is smooth."""

from __future__ import annotations

import math

import torch

from sdtrain.data.batch import collated
from sdtrain.data.sampling import Sample, generator
from sdtrain.model import attention
from sdtrain.model.generation import evaluating
from sdtrain.model.trainable_model import TrainableModel
from sdtrain.objective.diffusion import Noised, loss_of, noised
from sdtrain.reporting.progress import Progress
from sdtrain.runtime.stop import Stopped
from sdtrain.training import Training
from sdtrain.validation.held_out_images import HeldOut

_TIMESTEPS = 4  # of each image, evenly spaced, since the loss depends strongly on the timestep


def loss(training: Training, held_out: HeldOut, step: int) -> float:
    """The mean squared error over all held-out images and timesteps, of the weights to export. Collective.

    Independent of the number of processes: a forward pass holds the timesteps of one image, and the sum is exact.
    All ranks make the same number of passes. Raises Stopped when asked to stop before the last one.
    """
    world, parts = training.world, training.parts
    trained_encoders = parts.text_encoders if training.spec.train_text_encoder else {}
    model = TrainableModel(parts.architecture, parts.denoiser, trained_encoders)
    rounds = math.ceil(held_out.count / world.size)
    losses: dict[int, float] = {}
    progress = Progress("validate (loss)", held_out.count, shown=world.is_main)
    with (
        training.with_final_weights(),
        evaluating(parts),
        attention.chosen(training.spec.attention),
        torch.no_grad(),
    ):
        for index in range(world.rank, rounds * world.size, world.size):
            if world.any(bool(training.context.stop)):
                raise Stopped(step)
            value = float(loss_of(model, _noised(training, held_out, index % held_out.count)))
            if index < held_out.count:  # the rest complete the last round
                losses[index] = value
            progress.show(min(index + world.size - world.rank, held_out.count))
    every = {index: value for of_rank in world.gather(losses) for index, value in of_rank.items()}
    return math.fsum(every.values()) / len(every)


def _noised(training: Training, held_out: HeldOut, index: int) -> Noised:
    """One image at all timesteps: the mean of its latent posterior, with noise that depends on seed and index."""
    parts, spec = training.parts, training.spec
    example = held_out.images[Sample(0, index, index, "held out")]
    with torch.autocast(parts.device.type, enabled=False):  # the VAE computes in its own type
        posterior = parts.posterior(example["pixels"][None]).parameters[0]
    prompt = held_out.prompt if held_out.prompt is not None else example["caption"]
    token_ids = {name: ids[0] for name, ids in parts.token_ids([prompt], spec.prompt_chunks).items()}
    example |= {"pixels": None, "posterior": posterior, "token_ids": token_ids, "weight": 1.0}
    if parts.architecture.takes_sizes:
        example["time_ids"] = held_out.images.time_ids(example["sample"])
    shape = (_TIMESTEPS, len(posterior) // 2, *posterior.shape[1:])
    noises = torch.randn(shape, generator=generator(spec.seed, 0, index, "noise/held out"))
    timesteps = parts.process.even_timesteps(_TIMESTEPS)
    at_mean = torch.zeros(shape[1:])
    examples = [
        {**example, "random": {"latent": at_mean, "noise": noise, "timestep": timestep}}
        for noise, timestep in zip(noises, timesteps, strict=True)
    ]
    plain = spec.model_copy(update={"noise_offset": 0.0, "input_perturbation": 0.0, "snr_gamma": None})
    return noised(parts, collated([examples], [1.0]).to(parts.device), plain)
