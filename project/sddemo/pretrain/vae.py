"""Train a small AutoencoderKL (64 × 64 × 3 ↔ 16 × 16 × 4) on a world broader than the one it will serve."""

from __future__ import annotations

import random

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import Tensor
from tqdm import trange

from sddemo.scenes import OVERSAMPLING, RGB, SHAPES, SIZE, canvas, paint, random_scene
from sddemo.scenes import render as render_scene
from sddemo.tiny_pipeline import new_vae

SCALING_FACTOR = 0.18215  # Stable Diffusion's own, so that a trainer that forgets it shows
STEPS, IMAGES, HELD_OUT, BATCH = 4500, 20_000, 128, 8


def random_image(rng: random.Random) -> Image.Image:
    """An image with arbitrary colours, often two-coloured: no later subject is foreign to the VAE."""

    def colour() -> RGB:
        # Saturated colours are rare among uniform ones, and the ones that matter
        return tuple(rng.choice((rng.randrange(256), 16, 240)) for _ in range(3))  # type: ignore[return-value]

    if rng.random() < 0.25:
        return render_scene(random_scene(rng))
    image = canvas(colour())
    if rng.random() < 0.15:
        gradient = Image.linear_gradient("L").resize(image.size)
        image = Image.composite(image, Image.new("RGB", image.size, colour()), gradient)
    for _ in range(rng.choice((1, 1, 1, 2))):
        shape, radius = rng.choice(SHAPES), rng.uniform(10, 24)
        x, y = SIZE / 2 + rng.uniform(-10, 10), SIZE / 2 + rng.uniform(-10, 10)
        paint(image, shape, colour(), x, y, radius)
        if rng.random() < 0.5:  # a core of another colour: rings, dots, nested shapes
            paint(
                image,
                rng.choice((shape, rng.choice(SHAPES))),
                colour(),
                x,
                y,
                radius * rng.uniform(0.4, 0.8),
            )
    return image.reduce(OVERSAMPLING)


def to_tensor(images: list[Image.Image]) -> Tensor:
    """Images as uint8 [n, 3, 64, 64]."""
    return (
        torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()
    )


def normalised(pixels: Tensor) -> Tensor:
    """uint8 → float in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def psnr(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Peak signal-to-noise ratio of the reconstructions of uint8 images, in dB."""
    with torch.no_grad():
        images = normalised(pixels)
        error = (
            (vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1) - images).square().mean()
        )
    return float(10 * torch.log10(4 / error))


def train_vae(seed: int) -> AutoencoderKL:
    """Train a new VAE, and print how well it reconstructs images that it has not seen."""
    rng = random.Random(seed)
    pixels = to_tensor([random_image(rng) for _ in range(IMAGES)])
    generator = torch.Generator().manual_seed(seed)
    vae = new_vae((16, 16, 48)).to(memory_format=torch.channels_last)
    torch.nn.init.constant_(vae.quant_conv.bias[4:], -6.0)  # start almost deterministic
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0, fused=True)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=100, num_training_steps=STEPS)
    progress = trange(1, STEPS + 1, desc="VAE")
    for step in progress:
        images = normalised(pixels[torch.randint(HELD_OUT, IMAGES, (BATCH,), generator=generator)])
        posterior = vae.encode(images).latent_dist
        error = vae.decode(posterior.sample(generator)).sample - images
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        # A KL weight that grows late: sharp images first, smooth latents after
        loss = error.abs().mean() + error.square().mean() + 1e-3 * (0.1 + step / STEPS) * kl
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=loss.item(), kl=kl.item())
    print(f"VAE: PSNR {psnr(vae, pixels[:HELD_OUT]):.2f} dB")
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def whiten(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Give the latents of `pixels` (float [n, 3, 64, 64]) zero mean and the covariance I / SCALING_FACTOR².

    One scaling factor then fits all channels. The whitening is folded into the VAE's own convolutions, so that
    reconstructions stay the same. The posterior's variance, which a mixture of channels cannot carry over,
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
