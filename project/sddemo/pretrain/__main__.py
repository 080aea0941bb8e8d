"""Train the embedded pipeline from scratch: python -m sddemo.pretrain --output DIR --seed 0.

Four stages: the VAE on a broad world, the text encoder on captions, the U-Net on cached latents, and the log.
A stage's result that is already in DIR is used again, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from sddemo.evaluate import accuracy, evaluate, generate, grid
from sddemo.pretrain.text_encoder import embed, train_text_encoder
from sddemo.pretrain.tokenizer import new_tokenizer
from sddemo.pretrain.unet import caption_table, train_unet
from sddemo.pretrain.vae import normalised, to_tensor, train_vae, whiten
from sddemo.scenes import caption, render, scenes
from sddemo.tiny_pipeline import assemble, save

Stage = TypeVar("Stage", AutoencoderKL, CLIPTextModel, UNet2DConditionModel)


def pretrain(
    output: Path, seed: int, vae_steps: int, text_steps: int, unet_steps: int, images: int
) -> dict[str, Any]:
    """Run the stages; write pipeline/, grid.png and pretrain_log.json to `output`, and return the log."""
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = new_tokenizer()
    vae, vae_curve = _stage(output / "vae", AutoencoderKL, lambda: train_vae(seed, vae_steps))
    encoder, text_curve = _stage(
        output / "text_encoder", CLIPTextModel, lambda: train_text_encoder(tokenizer, seed, text_steps)
    )
    vae.requires_grad_(False)
    unet, unet_curve = _unet_stage(output, vae, encoder, tokenizer, seed, unet_steps, images)
    for part in (vae, unet):
        part.register_to_config(_name_or_path="")  # else the folder of this machine
    pipeline = assemble(vae.half(), encoder.float(), tokenizer, unet.half(), "v_prediction")
    final, images_of_final = evaluate(save(pipeline, output / "pipeline"), samples=64, seed=0)
    grid(images_of_final).save(output / "grid.png")
    log = {
        "command": f"python -m sddemo.pretrain --seed {seed} --vae-steps {vae_steps}"
        f" --text-steps {text_steps} --unet-steps {unet_steps} --images {images}",
        "hardware": f"{torch.get_num_threads()} CPU cores, {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{package.__name__: package.__version__ for package in (torch, diffusers, transformers)},
        },
        "parameters": {
            name: sum(parameter.numel() for parameter in part.parameters())
            for name, part in (("vae", vae), ("text_encoder", encoder), ("unet", unet))
        },
        "final": final,
        "curves": {"vae": vae_curve, "text_encoder": text_curve, "unet": unet_curve},
    }
    (output / "pretrain_log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    return log


def _unet_stage(
    output: Path,
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    seed: int,
    steps: int,
    num_images: int,
) -> tuple[UNet2DConditionModel, list[dict[str, Any]]]:
    """Whiten the latents, cache them and the captions, and train the U-Net on both."""

    def check(unet: UNet2DConditionModel, step: int) -> dict[str, Any]:
        wanted = scenes(32, seed + 100)
        pipeline = assemble(vae, encoder, tokenizer, unet, "v_prediction")
        images = generate(pipeline, [caption(scene) for scene in wanted])
        grid(images).save(output / f"grid-{step:06d}.png")
        return asdict(accuracy(images, wanted))

    world = scenes(num_images, seed + 1)
    pixels = to_tensor([render(scene) for scene in world])
    whiten(vae, normalised(pixels[:2048]))
    with torch.no_grad():
        means = [vae.encode(normalised(part)).latent_dist.mean for part in torch.split(pixels, 64)]
    latents = torch.cat(means) * vae.config.scaling_factor
    texts, rows = caption_table(world, seed + 2)
    embeddings = embed(encoder, tokenizer, texts)
    return _stage(
        output / "unet",
        UNet2DConditionModel,
        lambda: train_unet(latents, embeddings, rows, seed + 3, steps, check=check),
    )


def _stage(
    folder: Path, model_class: type[Stage], train: Callable[[], tuple[Stage, list[dict[str, Any]]]]
) -> tuple[Stage, list[dict[str, Any]]]:
    """The model and curve in `folder`, trained first if the folder is not there."""
    if not folder.exists():
        model, curve = train()
        unfinished = folder.with_suffix(".unfinished")
        model.save_pretrained(unfinished)
        (unfinished / "curve.json").write_text(json.dumps(curve), encoding="utf-8")
        shutil.move(unfinished, folder)
    loaded: Any = model_class.from_pretrained(folder)
    return loaded.eval(), json.loads((folder / "curve.json").read_text(encoding="utf-8"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sddemo.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=4500)
    parser.add_argument("--text-steps", type=int, default=500)
    parser.add_argument("--unet-steps", type=int, default=6000)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    log = pretrain(**arguments)
    print(json.dumps(log["final"]))


if __name__ == "__main__":
    main()
