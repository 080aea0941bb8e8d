"""Time the U-Net's forward and backward pass alone, on the shapes of a comparison: no trainer of one process is faster.

    PYTHONPATH=project OMP_NUM_THREADS=1 python benchmarks/peer/bound.py RESULTS.json

RESULTS.json is from `compare.py --what steps`. Prints a table in Markdown: for each of its cases with one process the
passes' time, and how much of a step of each trainer they are.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch.nn.functional import mse_loss

from sddemo.write_demo import PIPELINE

VAE_FACTOR = 4  # pixels per latent of the embedded pipeline
TOKENS = 77
ROUNDS, SKIPPED = 20, 5
LORA = LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])


def main() -> int:
    rows = json.loads(Path(sys.argv[1]).read_text())["rows"]
    trainers = list(dict.fromkeys(row["trainer"] for row in rows))
    cases = {_case(row): row for row in rows if row["processes"] == 1}
    steps = {(_case(row), row["trainer"]): _step(row) for row in rows}
    print("| recipe | px | batch | passes (ms) |", *(f"{trainer} |" for trainer in trainers))
    print("| --- " * (4 + len(trainers)) + "|")
    for case in sorted(cases):
        seconds = passes(case[0], case[1], cases[case]["images"])
        shares = (f"{seconds / steps[case, trainer]:.0%} |" for trainer in trainers)
        print(f"| {case[0]} | {case[1]} | {case[2]} | {seconds * 1e3:.0f} |", *shares, flush=True)
    return 0


def passes(recipe: str, resolution: int, images: int) -> float:
    """Seconds of a forward and a backward pass over this many images, the median of several."""
    unet = UNet2DConditionModel.from_pretrained(PIPELINE, subfolder="unet").train()
    if "LoRA" in recipe:
        unet.requires_grad_(False)
        unet.add_adapter(LORA)
    side = resolution // VAE_FACTOR
    latents = torch.randn(images, unet.config.in_channels, side, side)
    timesteps = torch.randint(0, 1000, (images,))
    conditioning = torch.randn(images, TOKENS, unet.config.cross_attention_dim)
    seconds = []
    for _ in range(ROUNDS):
        unet.zero_grad()
        began = time.perf_counter()
        mse_loss(unet(latents, timesteps, conditioning, return_dict=False)[0], latents).backward()
        seconds.append(time.perf_counter() - began)
    return median(seconds[SKIPPED:])


def _case(row: dict[str, Any]) -> tuple[str, int, int, int]:
    return row["recipe"], row["resolution"], row["batch"], row["processes"]


def _step(row: dict[str, Any]) -> float:
    return median(second for run in row["runs"] for second in run["steps"])


if __name__ == "__main__":
    sys.exit(main())
