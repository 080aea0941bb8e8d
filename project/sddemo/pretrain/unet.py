"""Train a small conditional U-Net on cached latents (v-prediction) with frozen text embeddings."""

from __future__ import annotations

import random

import torch
from diffusers import UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn.functional import mse_loss
from tqdm import trange

from sddemo.pretrain.text_encoder import HIDDEN
from sddemo.scene_captions import random_caption
from sddemo.scenes import Scene
from sddemo.tiny_pipeline import scheduler

STEPS, BATCH = 6000, 32
CAPTIONS_PER_SCENE = 4


def new_unet() -> UNet2DConditionModel:
    """An untrained U-Net for latents of 4 × 16 × 16, with attention at 8 × 8 and 4 × 4."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,  # in these blocks the number of heads, as in Stable Diffusion 1
        cross_attention_dim=HIDDEN,
        norm_num_groups=8,
    )


def caption_table(wanted: list[Scene], seed: int) -> tuple[list[str], Tensor]:
    """The distinct captions, and for each scene the rows [n, CAPTIONS_PER_SCENE] of captions that fit it."""
    rng = random.Random(seed)
    row: dict[str, int] = {}
    rows = [
        [row.setdefault(random_caption(scene, rng).text, len(row)) for _ in range(CAPTIONS_PER_SCENE)]
        for scene in wanted
    ]
    return list(row), torch.tensor(rows)


def train_unet(latents: Tensor, embeddings: Tensor, rows: Tensor, seed: int) -> UNet2DConditionModel:
    """Train on latents [n, 4, 16, 16] and the caption table; returns the EMA."""
    unet, schedule = new_unet().to(memory_format=torch.channels_last), scheduler("v_prediction")
    ema = EMAModel(unet.parameters(), decay=0.999, use_ema_warmup=True, power=0.75, foreach=True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1.5e-3, weight_decay=0.01, fused=True)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=200, num_training_steps=STEPS)
    generator = torch.Generator().manual_seed(seed)
    progress = trange(STEPS, desc="U-Net")
    for _ in progress:
        chosen = torch.randint(len(latents), (BATCH,), generator=generator)
        caption = rows[chosen, torch.randint(CAPTIONS_PER_SCENE, (BATCH,), generator=generator)]
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(schedule.config.num_train_timesteps, (BATCH,), generator=generator)
        noisy = schedule.add_noise(clean, noise, times).contiguous(memory_format=torch.channels_last)
        velocity = schedule.get_velocity(clean, noise, times)
        loss = mse_loss(unet(noisy, times, embeddings[caption]).sample, velocity)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        progress.set_postfix(loss=loss.item())
    ema.copy_to(unet.parameters())
    return unet.eval()
