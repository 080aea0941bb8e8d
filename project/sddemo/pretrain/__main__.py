"""Train the embedded pipeline from scratch: python -m sddemo.pretrain --output DIR --seed 0.

First the VAE on a broad world, then the text encoder on captions, then the U-Net on cached latents.
The tokenizer stays: its merges spell the words of the world.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from sddemo.evaluate import evaluate, grid
from sddemo.pretrain.text_encoder import embed, train_text_encoder
from sddemo.pretrain.unet import caption_table, train_unet
from sddemo.pretrain.vae import normalised, to_tensor, train_vae, whiten
from sddemo.scenes import render, scenes
from sddemo.tiny_pipeline import assemble, save, tokenizer


def pretrain(output: Path, seed: int) -> None:
    """Write pipeline/, and grid.png with images of it, to `output`; print its metrics."""
    torch.manual_seed(seed)
    words = tokenizer()
    vae = train_vae(seed)
    encoder = train_text_encoder(words, seed)
    world = scenes(20_000, seed + 1)
    pixels = to_tensor([render(scene) for scene in world])
    whiten(vae, normalised(pixels[:2048]))
    with torch.no_grad():
        means = [vae.encode(normalised(part)).latent_dist.mean for part in torch.split(pixels, 64)]
    texts, rows = caption_table(world, seed + 2)
    latents = torch.cat(means) * vae.config.scaling_factor
    unet = train_unet(latents, embed(encoder, words, texts), rows, seed + 3)
    pipeline = assemble(vae.half(), encoder, words, unet.half(), "v_prediction")
    metrics, images = evaluate(save(pipeline, output / "pipeline"), samples=64, seed=0)
    grid(images).save(output / "grid.png")
    print(json.dumps(metrics))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sddemo.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pretrain(arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
