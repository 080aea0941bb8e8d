"""From a batch to its loss: encode, add noise, predict, compare."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from torch.nn.functional import mse_loss

from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Conditioning, Parts
from sdtrain.data.batch import Batch


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
def noised(parts: Parts, batch: Batch, spec: RunSpec) -> Noised:
    """Encode images and prompts, and add noise: everything before the trainable model. On the batch's device."""
    process, random = parts.process, batch.random
    if batch.posterior is not None:
        posterior = DiagonalGaussianDistribution(batch.posterior)
    else:
        assert batch.pixels is not None
        posterior = parts.posterior(batch.pixels)
    latents = parts.normalized(posterior.mean.float() + posterior.std.float() * random["latent"])
    noise, timesteps, weights = random["noise"], random["timestep"], batch.weights
    if spec.noise_offset:  # Guttenberg 2023, "Diffusion with Offset Noise"
        noise = noise + spec.noise_offset * random["noise_offset"]
    added = noise
    if spec.input_perturbation:  # Ning et al. 2023, arXiv:2301.11706, algorithm 1
        added = noise + spec.input_perturbation * random["input_perturbation"]
    if spec.snr_gamma is not None:
        weights = weights * process.min_snr_weights(timesteps, spec.snr_gamma)
    return Noised(
        noisy_latents=process.add_noise(latents, added, timesteps),
        timesteps=timesteps,
        conditioning=_conditioning(parts, batch, spec),
        target=process.target(latents, noise, timesteps),
        weights=weights,
        sizes=batch.sizes,
        stream_weights=batch.stream_weights,
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


def _conditioning(parts: Parts, batch: Batch, spec: RunSpec) -> Conditioning:
    """Of all samples; cached encodings are taken as they are, and token ids where the encoders are trained."""
    of_prompts = batch.encodings
    if of_prompts is None:
        assert batch.token_ids is not None
        of_prompts = batch.token_ids if spec.train_text_encoder else parts.encode(batch.token_ids)
    return of_prompts if batch.time_ids is None else {**of_prompts, "time_ids": batch.time_ids}
