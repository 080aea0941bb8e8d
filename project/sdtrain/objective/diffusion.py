"""From a batch to its loss: encode, add noise, predict, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Conditioning, Parts
from sdtrain.data.sampling import Sample, sample_generator
from sdtrain.data.streams import StreamBatch
from sdtrain.objective import loss


@dataclass(frozen=True)
class Noised:
    """A batch as the trainable model sees it: all streams, one after the other."""

    noisy_latents: torch.Tensor  # [B, C, h, w], fp32
    timesteps: torch.Tensor  # [B]
    conditioning: Conditioning
    target: torch.Tensor  # of the prediction, [B, C, h, w]
    weights: torch.Tensor | None  # of each sample's error, [B]; None: all count alike
    sizes: tuple[int, ...]  # samples of each stream
    stream_weights: tuple[float, ...]  # of each stream in the loss


@torch.no_grad()
def noised(parts: Parts, batches: tuple[StreamBatch, ...], spec: RunSpec) -> Noised:
    """Encode images and prompts, and add noise: everything before the trainable model."""
    process = parts.process
    samples = [sample for batch in batches for sample in batch.samples]
    posterior = _posterior(parts, batches)
    shape = tuple(posterior.mean.shape[1:])

    def normal(purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
        return _normal(samples, spec.seed, purpose, shape).to(parts.device, non_blocking=True)

    latents = parts.normalized(posterior.mean.float() + posterior.std.float() * normal("latent", shape))
    noise = normal("noise", shape)
    if spec.noise_offset:  # Guttenberg 2023, "Diffusion with Offset Noise"
        noise = noise + spec.noise_offset * normal("noise_offset", (shape[0], 1, 1))
    added = noise
    if spec.input_perturbation:  # Ning et al. 2023, arXiv:2301.11706, algorithm 1
        added = noise + spec.input_perturbation * normal("input_perturbation", shape)
    generators = (sample_generator(spec.seed, sample, "timestep") for sample in samples)
    timesteps = torch.cat([process.sample_timestep(generator) for generator in generators]).to(parts.device)
    snr_weights = None if spec.snr_gamma is None else process.min_snr_weights(timesteps, spec.snr_gamma)
    return Noised(
        noisy_latents=process.add_noise(latents, added, timesteps),
        timesteps=timesteps,
        conditioning=_conditioning(parts, batches, spec),
        target=process.target(latents, noise, timesteps),
        weights=_weights(batches, snr_weights),
        sizes=tuple(len(batch.samples) for batch in batches),
        stream_weights=tuple(batch.weight for batch in batches),
    )


def _weights(batches: tuple[StreamBatch, ...], of_timesteps: torch.Tensor | None) -> torch.Tensor | None:
    """Weight of each sample's error, [B]: its image's times its timestep's; None: all count alike."""
    if all(batch.image_weights is None for batch in batches):
        return of_timesteps
    weights = torch.cat(
        [
            batch.image_weights if batch.image_weights is not None else torch.ones(len(batch.samples))
            for batch in batches
        ]
    )
    return weights if of_timesteps is None else weights.to(of_timesteps.device) * of_timesteps


def loss_of(model: nn.Module, batch: Noised) -> torch.Tensor:
    """The loss of a batch, []: all streams go through the model in one forward pass."""
    prediction = model(batch.noisy_latents, batch.timesteps, batch.conditioning)
    errors = loss.squared_error(prediction, batch.target)
    if batch.weights is not None:
        errors = errors * batch.weights.to(errors.device)
    by_stream = torch.split(errors, list(batch.sizes))
    return loss.weighted_loss(list(by_stream), list(batch.stream_weights))


def _posterior(parts: Parts, batches: tuple[StreamBatch, ...]) -> DiagonalGaussianDistribution:
    """The VAE's posterior of all images, computed or from the cache."""
    if posteriors := [batch.posterior for batch in batches if batch.posterior is not None]:
        return DiagonalGaussianDistribution(torch.cat(posteriors).to(parts.device, non_blocking=True))
    return parts.posterior(torch.cat([b.pixel_values for b in batches if b.pixel_values is not None]))


def _conditioning(parts: Parts, batches: tuple[StreamBatch, ...], spec: RunSpec) -> Conditioning:
    """Of all samples; cached encodings are taken as they are."""
    time_ids = [batch.time_ids for batch in batches if batch.time_ids is not None]
    sizes = torch.cat(time_ids) if time_ids else None
    if cached := [batch.encodings for batch in batches if batch.encodings is not None]:
        encodings = {name: torch.cat([of[name] for of in cached]) for name in cached[0]}
        return _on_device(parts, encodings, sizes)
    return conditioning_of(parts, [prompt for batch in batches for prompt in batch.prompts], spec, sizes)


def conditioning_of(
    parts: Parts, prompts: Sequence[str], spec: RunSpec, time_ids: torch.Tensor | None
) -> Conditioning:
    """The conditioning that `TrainableModel` takes: prompts encoded, or their token ids where the encoders are trained;
    and the sizes of the images, [B, 6], where the architecture takes them."""
    tokens = parts.token_ids(prompts, spec.prompt_chunks)
    return _on_device(parts, tokens if spec.train_text_encoder else parts.encode(tokens), time_ids)


def _on_device(parts: Parts, of_prompts: Conditioning, time_ids: torch.Tensor | None) -> Conditioning:
    everything = of_prompts if time_ids is None else {**of_prompts, "time_ids": time_ids}
    return {name: tensor.to(parts.device, non_blocking=True) for name, tensor in everything.items()}


def _normal(samples: Sequence[Sample], seed: int, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise for each sample, fp32, [B, *shape]."""
    return torch.stack(
        [torch.randn(shape, generator=sample_generator(seed, sample, purpose)) for sample in samples]
    )
