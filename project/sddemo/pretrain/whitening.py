"""Fold a whitening of the latents into a VAE's own convolutions: one scaling factor fits all channels."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

SCALING_FACTOR = 0.18215  # Stable Diffusion's own, so that a trainer that forgets it shows


@torch.no_grad()
def whiten(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Gives the latents of `pixels` (float [n, 3, 64, 64]) zero mean and the covariance I / SCALING_FACTOR².

    Reconstructions stay the same. The posterior's variance, which a mixture of channels cannot carry over,
    becomes one constant a channel: the mean of what it was.
    """
    posteriors = [vae.encode(part).latent_dist for part in torch.split(pixels, 64)]
    means = torch.cat([posterior.mean for posterior in posteriors])
    latents = means.movedim(1, -1).flatten(0, -2).double()  # [m, 4]
    variance = torch.cat([posterior.var for posterior in posteriors]).mean((0, 2, 3)).double()  # [4]
    mean, covariance = latents.mean(0), torch.cov(latents.T)
    values, vectors = torch.linalg.eigh(covariance)
    # ZCA: among all whitenings the one that changes the channels least
    to_white = vectors @ torch.diag(values.rsqrt()) @ vectors.T / SCALING_FACTOR
    from_white = torch.linalg.inv(to_white)

    encode, decode = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    weight, bias = encode.weight[:channels, :, 0, 0].double(), encode.bias[:channels].double()
    encode.weight[:channels, :, 0, 0] = (to_white @ weight).float()
    encode.bias[:channels] = (to_white @ (bias - mean)).float()
    encode.weight[channels:] = 0
    encode.bias[channels:] = (to_white.square() @ variance).log().float()
    back = decode.weight[:, :, 0, 0].double()
    decode.bias += (back @ mean).float()
    decode.weight[:, :, 0, 0] = (back @ from_white).float()
    vae.register_to_config(scaling_factor=SCALING_FACTOR)
