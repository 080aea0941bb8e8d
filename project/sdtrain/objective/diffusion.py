"""From a batch to its loss: encode, add noise, predict, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Conditioning
from sdtrain.data.sampling import Sample, draws
from sdtrain.data.streams import StreamBatch
from sdtrain.model.load import Parts
from sdtrain.model.tokenize import encoded, token_ids
from sdtrain.objective import loss


@dataclass(frozen=True)
class Noised:
    """A batch as the network sees it: all streams, one after the other."""

    noisy_latents: torch.Tensor  # [B, C, h, w], fp32
    timesteps: torch.Tensor  # [B]
    conditioning: Conditioning
    wanted: torch.Tensor  # what the network has to predict, [B, C, h, w]
    weights: torch.Tensor | None  # of each sample's error, [B]; None: all count alike
    sizes: tuple[int, ...]  # samples of each stream
    stream_weights: tuple[float, ...]  # of each stream in the loss


@torch.no_grad()
def noised(parts: Parts, batches: tuple[StreamBatch, ...], spec: RunSpec) -> Noised:
    """Encodes images and prompts, and adds noise: everything before the network that is trained."""
    device, schedule, kind = parts.device, parts.noise_schedule, parts.noise_schedule.config.prediction_type
    samples = [sample for batch in batches for sample in batch.samples]
    posterior = _posterior(parts, batches)
    shape = tuple(posterior.mean.shape[1:])

    def normal(purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
        return _normal(samples, spec.seed, purpose, shape).to(device, non_blocking=True)

    latents = posterior.mean.float() + posterior.std.float() * normal("latent", shape)
    latents = latents * float(parts.vae.config.scaling_factor)
    noise = normal("noise", shape)
    if spec.noise_offset:  # Guttenberg 2023, "Diffusion with Offset Noise"
        noise = noise + spec.noise_offset * normal("noise_offset", (shape[0], 1, 1))
    added = noise
    if spec.input_perturbation:  # Ning et al. 2023, arXiv:2301.11706, algorithm 1
        added = noise + spec.input_perturbation * normal("input_perturbation", shape)
    timesteps = draw_timesteps(samples, spec.seed, schedule.config.num_train_timesteps).to(device)
    weights = None
    if spec.snr_gamma is not None:
        snr = loss.signal_to_noise(schedule, timesteps)
        weights = loss.min_snr_weights(kind, snr, spec.snr_gamma)
    return Noised(
        noisy_latents=schedule.add_noise(latents, added, timesteps),
        timesteps=timesteps,
        conditioning=_conditioning(parts, batches, spec),
        wanted=loss.target(kind, schedule, latents, noise, timesteps),
        weights=_weights(batches, weights),
        sizes=tuple(len(batch.samples) for batch in batches),
        stream_weights=tuple(batch.weight for batch in batches),
    )


def _weights(batches: tuple[StreamBatch, ...], of_timesteps: torch.Tensor | None) -> torch.Tensor | None:
    """Of each sample's error, [B]: that of its image times that of its timestep; None: all count alike."""
    if all(batch.image_weights is None for batch in batches):
        return of_timesteps
    given = [
        batch.image_weights if batch.image_weights is not None else torch.ones(len(batch.samples))
        for batch in batches
    ]
    weights = torch.cat(given)
    return weights if of_timesteps is None else weights.to(of_timesteps.device) * of_timesteps


def loss_of(model: nn.Module, batch: Noised) -> torch.Tensor:
    """The loss of a batch, []: all streams go through the network in one forward pass."""
    noise_pred = model(batch.noisy_latents, batch.timesteps, batch.conditioning)
    errors = loss.squared_error(noise_pred, batch.wanted)
    if batch.weights is not None:
        errors = errors * batch.weights.to(errors.device)
    by_stream = torch.split(errors, list(batch.sizes))
    return loss.weighted_loss(list(by_stream), list(batch.stream_weights))


def _posterior(parts: Parts, batches: tuple[StreamBatch, ...]) -> DiagonalGaussianDistribution:
    """What the VAE makes of the images: mean and deviation of their latents, [B, C, h, w], unscaled."""
    if moments := [batch.moments for batch in batches if batch.moments is not None]:
        return DiagonalGaussianDistribution(torch.cat(moments).to(parts.device, non_blocking=True))
    pixel_values = torch.cat([batch.pixel_values for batch in batches if batch.pixel_values is not None])
    dtype = next(parts.vae.parameters()).dtype  # `vae.dtype` walks through every module, in every step
    encoded = parts.vae.encode(pixel_values.to(parts.device, dtype, non_blocking=True))
    posterior: DiagonalGaussianDistribution = encoded.latent_dist
    return posterior


def _conditioning(parts: Parts, batches: tuple[StreamBatch, ...], spec: RunSpec) -> Conditioning:
    """Of all samples; what the batches bring along already encoded is taken as it is."""
    time_ids = [batch.time_ids for batch in batches if batch.time_ids is not None]
    sizes = torch.cat(time_ids) if time_ids else None
    if given := [batch.encodings for batch in batches if batch.encodings is not None]:
        encodings = {name: torch.cat([of[name] for of in given]) for name in given[0]}
        return _on_device(parts, encodings, sizes)
    return conditioning(parts, [prompt for batch in batches for prompt in batch.prompts], spec, sizes)


def conditioning(
    parts: Parts, prompts: Sequence[str], spec: RunSpec, time_ids: torch.Tensor | None
) -> Conditioning:
    """What `Denoiser` takes: prompts encoded, or their token ids if they train the encoders; and the sizes of the
    images, [B, 6], where the network is told them."""
    tokens = token_ids(parts, prompts, spec.prompt_chunks)
    return _on_device(parts, tokens if spec.train_text_encoder else encoded(parts, tokens), time_ids)


def _on_device(parts: Parts, of_prompts: Conditioning, time_ids: torch.Tensor | None) -> Conditioning:
    everything = of_prompts if time_ids is None else {**of_prompts, "time_ids": time_ids}
    return {name: tensor.to(parts.device, non_blocking=True) for name, tensor in everything.items()}


def draw_timesteps(samples: Sequence[Sample], seed: int, count: int) -> torch.Tensor:
    """A uniform timestep in [0, count) for each sample, [B]."""
    return torch.cat(
        [torch.randint(count, (1,), generator=draws(seed, sample, "timestep")) for sample in samples]
    )


def _normal(samples: Sequence[Sample], seed: int, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise for each sample, fp32, [B, *shape]."""
    return torch.stack([torch.randn(shape, generator=draws(seed, sample, purpose)) for sample in samples])
