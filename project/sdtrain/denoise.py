"""From a micro-batch to its loss: encode, add noise, predict, compare."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sdtrain import objective
from sdtrain.models import Parts, tokenize
from sdtrain.order import Sample, generator
from sdtrain.streams import Stream, StreamBatch


@dataclass(frozen=True)
class Noised:
    """A micro-batch as the network sees it: all streams, one after the other."""

    noisy_latents: torch.Tensor  # [B, C, h, w], fp32
    timesteps: torch.Tensor  # [B]
    conditioning: (
        torch.Tensor
    )  # what `Denoiser` takes: encoder_hidden_states [B, tokens, width], or token ids
    wanted: torch.Tensor  # what the network has to predict, [B, C, h, w]
    sizes: tuple[int, ...]  # samples of each stream
    weights: tuple[float, ...]  # of each stream in the loss


@torch.no_grad()
def noised(parts: Parts, streams: tuple[Stream, ...], batches: tuple[StreamBatch, ...], seed: int) -> Noised:
    """Encodes pictures and prompts, and adds noise: everything before the network that is trained."""
    device = parts.device
    keys = [
        (stream, sample) for stream, batch in zip(streams, batches, strict=True) for sample in batch.samples
    ]
    pixel_values = torch.cat([batch.pixel_values for batch in batches]).to(
        device, parts.dtype, non_blocking=True
    )
    prompts = [prompt for batch in batches for prompt in batch.prompts]
    latents = encode_images(parts, pixel_values, _normal(keys, seed, "latent", pixel_values, parts))
    noise = _normal(keys, seed, "noise", pixel_values, parts)
    schedule = parts.noise_schedule
    timesteps = draw_timesteps(keys, seed, schedule.config.num_train_timesteps).to(device)
    return Noised(
        noisy_latents=schedule.add_noise(latents, noise, timesteps),
        timesteps=timesteps,
        conditioning=parts.text_encoder(tokenize(parts.tokenizer, prompts).to(device))[0],
        wanted=objective.target(schedule.config.prediction_type, schedule, latents, noise, timesteps),
        sizes=tuple(len(batch.samples) for batch in batches),
        weights=tuple(stream.weight for stream in streams),
    )


def loss_of(model: nn.Module, batch: Noised) -> torch.Tensor:
    """The loss of a micro-batch, []: all streams go through the network in one forward pass."""
    noise_pred = model(batch.noisy_latents, batch.timesteps, batch.conditioning)
    errors = torch.split(objective.squared_error(noise_pred, batch.wanted), list(batch.sizes))
    return objective.weighted_loss(list(errors), list(batch.weights))


@torch.no_grad()
def encode_images(parts: Parts, pixel_values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] in [-1, 1] → scaled latents [B, C, h, w] in fp32, drawn from the VAE's posterior by `noise`."""
    posterior = parts.vae.encode(pixel_values).latent_dist
    latents: torch.Tensor = posterior.mean.float() + posterior.std.float() * noise
    return latents * float(parts.vae.config.scaling_factor)


def draw_timesteps(keys: list[tuple[Stream, Sample]], seed: int, count: int) -> torch.Tensor:
    """A uniform timestep in [0, count) for each sample, [B]."""
    return torch.cat([torch.randint(count, (1,), generator=_of(key, seed, "timestep")) for key in keys])


def _normal(
    keys: list[tuple[Stream, Sample]], seed: int, purpose: str, pixel_values: torch.Tensor, parts: Parts
) -> torch.Tensor:
    """Standard normal noise of latent shape for each sample, fp32, [B, C, h, w]."""
    factor = 2 ** (len(parts.vae.config.block_out_channels) - 1)
    height, width = (side // factor for side in pixel_values.shape[-2:])
    shape = (parts.vae.config.latent_channels, height, width)
    noise = torch.stack([torch.randn(shape, generator=_of(key, seed, purpose)) for key in keys])
    return noise.to(parts.device, non_blocking=True)


def _of(key: tuple[Stream, Sample], seed: int, purpose: str) -> torch.Generator:
    stream, sample = key
    return generator(seed, sample.epoch, sample.position, f"{purpose}/{stream.name}")
