"""From a batch to its loss: encode, add noise, predict, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from torch.nn.functional import mse_loss

from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Conditioning, Parts
from sdtrain.data.sampling import Sample, sample_generator
from sdtrain.data.streams import StreamBatch


@dataclass(frozen=True)
class Noised:
    """A batch as the trainable model sees it: all streams, one after the other."""

    noisy_latents: torch.Tensor  # [B, C, h, w], fp32
    timesteps: torch.Tensor  # [B]
    conditioning: Conditioning
    target: torch.Tensor  # the target of the prediction, [B, C, h, w]
    weights: torch.Tensor  # the weight of each sample's error, [B]
    sizes: tuple[int, ...]  # samples of each stream
    stream_weights: tuple[float, ...]  # the weight of each stream in the loss


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
    weights = torch.cat([batch.image_weights for batch in batches]).to(parts.device, non_blocking=True)
    if spec.snr_gamma is not None:
        weights = weights * process.min_snr_weights(timesteps, spec.snr_gamma)
    return Noised(
        noisy_latents=process.add_noise(latents, added, timesteps),
        timesteps=timesteps,
        conditioning=_conditioning(parts, batches, spec),
        target=process.target(latents, noise, timesteps),
        weights=weights,
        sizes=tuple(len(batch.samples) for batch in batches),
        stream_weights=tuple(batch.weight for batch in batches),
    )


def loss_of(model: nn.Module, batch: Noised) -> torch.Tensor:
    """The loss of a batch, []: the sum over streams of weight × mean error; all streams in one forward pass.

    With two streams, instance loss and prior loss (Ruiz et al. 2022, arXiv:2208.12242, eq. 2).
    """
    prediction = model(batch.noisy_latents, batch.timesteps, batch.conditioning)
    squares = mse_loss(prediction.float(), batch.target.float(), reduction="none")
    by_stream = torch.split(squares.mean(dim=(1, 2, 3)) * batch.weights, list(batch.sizes))
    losses = [weight * errors.mean() for errors, weight in zip(by_stream, batch.stream_weights, strict=True)]
    return torch.stack(losses).sum()


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
