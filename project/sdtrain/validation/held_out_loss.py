"""The loss on images that are not trained on, at fixed timesteps and with fixed noise: a stable curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from sdjob.dataset import validation_split
from sdjob.dataset.detect import dataset_in
from sdjob.settings.run_spec import RunSpec
from sdtrain import architectures
from sdtrain.context import HeldOut, Training
from sdtrain.data.images import TrainingImages
from sdtrain.data.sampling import Sample, generator, permutation
from sdtrain.generate import evaluating
from sdtrain.model import attention
from sdtrain.model.denoiser import Denoiser
from sdtrain.objective import loss as objective
from sdtrain.objective.diffusion import conditioning
from sdtrain.recipes.base import open_images
from sdtrain.reporting.progress import say
from sdtrain.runtime.distributed import World
from sdtrain.runtime.heartbeat import Pulse

_TIMESTEPS = 4  # of each image, evenly over the schedule: the loss of one says little of another's


def held_apart(
    spec: RunSpec, world: World, images: TrainingImages, counts: Sequence[int]
) -> tuple[TrainingImages, HeldOut | None]:
    """The images to train on, and those that are held out: of a folder, looked at, or a share of the datasets.
    Collective. Raises JobError (66).

    `counts`: images of each dataset of `images`.
    """
    facts = spec.recipe_facts
    prompt = None if facts.reads_captions else spec.instance_prompt
    if spec.validation_split:
        kept, held = divided(spec, counts)
        if world.is_main:
            say(f"{len(held)} of {len(images)} images are held out")
        # Each image of several subjects has the prompt of its own.
        return images.only(kept), _held_out(spec, images.only(held), None if spec.concepts_list else prompt)
    if not spec.validation_data_dir:
        return images, None
    info = dataset_in(spec.validation_data_dir, spec, captions=facts.reads_captions)
    return images, _held_out(spec, open_images(spec, world, [info]), prompt)


def divided(spec: RunSpec, counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Indices of the images to train on and of those held out, of datasets one after the other.

    A share of each dataset, whatever is in it, by the seed alone. The held-out ones take turns among the datasets,
    so that the first of them are of all.
    """
    held: list[tuple[int, int, int]] = []
    for number, count in enumerate(counts):
        order = permutation(spec.seed, 0, count, f"held out/{number}")[
            : validation_split.held_out(spec, count)
        ]
        first = sum(counts[:number])
        held += [(turn, number, first + index) for turn, index in enumerate(order.tolist())]
    chosen = {index for _, _, index in held}
    return [index for index in range(sum(counts)) if index not in chosen], [i for _, _, i in sorted(held)]


def _held_out(spec: RunSpec, images: TrainingImages, prompt: str | None) -> HeldOut:
    images = replace(images, center_crop=True, random_flip=False)
    return HeldOut(images, min(len(images), spec.max_validation_samples), prompt)


def loss(training: Training, held_out: HeldOut) -> float | None:
    """The mean squared error over all held-out images and timesteps, by the weights that are exported. Collective.

    A forward pass holds the timesteps of one image, whoever computes it, and the sum goes by the order of
    the images: so the number is the same on any number of processes. All ranks make as many passes.
    None: asked to stop before all were made.
    """
    world, parts = training.world, training.parts
    trained_encoders = parts.text_encoders if training.spec.train_text_encoder else {}
    denoiser = Denoiser(architectures.of(parts), parts.unet, trained_encoders)
    rounds = math.ceil(held_out.count / world.size)
    errors: dict[int, float] = {}
    pulse = Pulse()
    with training.averaged(), evaluating(parts), attention.chosen(training.spec.attention), torch.no_grad():
        for index in range(world.rank, rounds * world.size, world.size):
            if world.any(bool(training.stop)):
                return None
            error = _error(training, denoiser, held_out, index % held_out.count)
            if index < held_out.count:  # the others fill up the last round
                errors[index] = error
            pulse()
    every = {index: error for share in world.gather(errors) for index, error in share.items()}
    return math.fsum(every[index] for index in sorted(every)) / len(every)


def _error(training: Training, denoiser: Denoiser, held_out: HeldOut, index: int) -> float:
    """The mean error of one image."""
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
    told = conditioning(parts, [prompt] * _TIMESTEPS, spec, time_ids)
    noise_pred = denoiser(schedule.add_noise(latents, noise, timesteps), timesteps, told)
    kind = schedule.config.prediction_type
    wanted = objective.target(kind, schedule, latents, noise, timesteps)
    return float(objective.squared_error(noise_pred, wanted).mean())
