"""From a micro-batch to its loss: encode, add noise, predict, compare."""

from __future__ import annotations

import torch
from torch import nn

from sdtrain import objective
from sdtrain.models import Parts, tokenize
from sdtrain.order import Sample, generator
from sdtrain.streams import Stream, StreamBatch


def loss_of(
    model: nn.Module,
    parts: Parts,
    streams: tuple[Stream, ...],
    batches: tuple[StreamBatch, ...],
    seed: int,
) -> torch.Tensor:
    """The loss of a micro-batch, []: all streams go through the network in one forward pass."""
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
    timesteps = draw_timesteps(keys, seed, parts.noise_schedule.config.num_train_timesteps).to(device)
    with torch.no_grad():
        noisy_latents = parts.noise_schedule.add_noise(latents, noise, timesteps)
        encoder_hidden_states = parts.text_encoder(tokenize(parts.tokenizer, prompts).to(device))[0]
        wanted = objective.target(
            parts.noise_schedule.config.prediction_type, parts.noise_schedule, latents, noise, timesteps
        )
    noise_pred = model(noisy_latents, timesteps, encoder_hidden_states, return_dict=False)[0]
    sizes = [len(batch.samples) for batch in batches]
    errors = torch.split(objective.squared_error(noise_pred, wanted), sizes)
    return objective.weighted_loss(list(errors), [stream.weight for stream in streams])


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
