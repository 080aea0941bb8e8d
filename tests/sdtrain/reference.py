"""A straightforward trainer on diffusers' own building blocks, to compare the worker with.

One loop, one process, no options beyond what the comparison needs. Of the worker it takes only the order of
the samples and their random numbers.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel, compute_snr
from peft import LoraConfig
from PIL import Image
from torch.nn.functional import mse_loss
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdtrain.data.sampling import generator, permutation


@dataclass
class Images:
    """A stream of the reference: images of the training size with their captions."""

    name: str
    pixels: list[torch.Tensor]
    captions: list[str]
    weight: float = 1.0

    @classmethod
    def read(cls, name: str, folder: Path, side: int, prompt: str | None = None, weight: float = 1.0):
        if prompt is None:
            rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
            files, captions = [folder / row["file_name"] for row in rows], [row["text"] for row in rows]
        else:
            files = sorted(folder.glob("*.png"))
            captions = [prompt] * len(files)
        return cls(name, [_pixels(file, side) for file in files], captions, weight)


def _pixels(file: Path, side: int) -> torch.Tensor:
    image = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


@dataclass
class Result:
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)  # of the EMA, where one was asked for


@dataclass
class Prompts:
    """What the U-Net is told of prompts, by the encoders of Stable Diffusion or of XL."""

    chunks: int
    encoders: dict[str, CLIPTextModel | CLIPTextModelWithProjection]
    tokenizers: list[CLIPTokenizer]
    unused: dict[str, str]  # layers whose output goes nowhere, as a regular expression

    @classmethod
    def read(cls, model: Path, chunks: int):
        kinds = {"": CLIPTextModel, "_2": CLIPTextModelWithProjection}
        found = [n for n in kinds if (model / f"text_encoder{n}").is_dir()]
        encoders = {
            f"text_encoder{n}": kinds[n].from_pretrained(model, subfolder=f"text_encoder{n}") for n in found
        }
        tokenizers = [CLIPTokenizer.from_pretrained(model, subfolder=f"tokenizer{n}") for n in found]
        last = encoders["text_encoder"].config.num_hidden_layers - 1
        unused = {"text_encoder": rf".*layers\.{last}\..*"} if len(found) > 1 else {}
        return cls(chunks, encoders, tokenizers, unused)

    def told(self, text: str) -> dict[str, torch.Tensor]:
        """The arguments of the U-Net for one prompt; each stretch of 75 tokens is a prompt of its own."""
        outputs = [
            [encoder(ids, output_hidden_states=True) for ids in self.ids(tokenizer, text)]
            for tokenizer, encoder in zip(self.tokenizers, self.encoders.values(), strict=True)
        ]
        if len(outputs) == 1:
            return {"encoder_hidden_states": torch.cat([one.last_hidden_state for one in outputs[0]], dim=1)}
        hidden = [torch.cat([one.hidden_states[-2] for one in of], dim=1) for of in outputs]
        return {
            "encoder_hidden_states": torch.cat(hidden, dim=-1),
            "text_embeds": outputs[1][0].text_embeds,
            "time_ids": torch.tensor([[64.0, 64.0, 0.0, 0.0, 32.0, 32.0]]),  # as all images of the tests are
        }

    def ids(self, tokenizer: CLIPTokenizer, text: str) -> list[torch.Tensor]:
        if self.chunks == 1:
            return [tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids]
        words = tokenizer(text, add_special_tokens=False).input_ids
        found = []
        for chunk in range(self.chunks):
            ids = [tokenizer.bos_token_id, *words[75 * chunk : 75 * (chunk + 1)], tokenizer.eos_token_id]
            found.append(torch.tensor([ids + [tokenizer.pad_token_id] * (77 - len(ids))]))
        return found


def train(
    model: Path,
    streams: list[Images],
    *,
    steps: int,
    seed: int,
    lr: float,
    batch: int = 1,
    accumulation: int = 1,
    max_grad_norm: float = 1.0,
    weight_decay: float = 1e-2,
    ema_decay: float | None = None,
    lora_rank: int = 0,
    lora_alpha: float = 0.0,
    snr_gamma: float | None = None,
    noise_offset: float = 0.0,
    input_perturbation: float = 0.0,
    zero_snr: bool = False,
    empty_prompts: float = 0.0,
    text_encoder_lr: float | None = None,
    chunks: int = 1,
    optimizer_of: Callable[[list[dict]], torch.optim.Optimizer] | None = None,
) -> Result:
    """Losses, norms and final weights of a run."""
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae")
    prompts = Prompts.read(model, chunks)
    noise_scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    if zero_snr:
        noise_scheduler = DDPMScheduler.from_config(noise_scheduler.config, rescale_betas_zero_snr=True)
    prediction_type = noise_scheduler.config.prediction_type
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    if lora_rank:
        unet.requires_grad_(False)
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(
                r=lora_rank,
                lora_alpha=lora_alpha,
                target_modules=["to_k", "to_q", "to_v", "to_out.0"],
                init_lora_weights="gaussian",
            )
        )
    for name, encoder in prompts.encoders.items():
        encoder.requires_grad_(text_encoder_lr is not None and not lora_rank)
        if text_encoder_lr and lora_rank:
            config = LoraConfig(
                r=lora_rank,
                lora_alpha=lora_alpha,
                target_modules=["q_proj", "k_proj", "v_proj", "out_proj"],
                exclude_modules=prompts.unused.get(name),
                init_lora_weights="gaussian",
            )
            encoder.add_adapter(config)
    unet.train()
    parts = {"unet": unet, **prompts.encoders}
    trained = {
        f"{part}.{name}": p
        for part, module in parts.items()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    groups = [
        {"params": [p for name, p in trained.items() if name.startswith(f"{part}.")], "lr": rate}
        for part, rate in (("unet", lr), *((name, text_encoder_lr) for name in prompts.encoders))
        if rate
    ]
    if optimizer_of:
        optimizer = optimizer_of(groups)
    else:
        optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, eps=1e-8)
    ema = EMAModel(list(trained.values()), decay=ema_decay) if ema_decay else None

    result, place = Result(), 0
    for _ in range(steps):
        total = 0.0
        for _ in range(accumulation):
            loss = torch.zeros(())
            for stream in streams:
                inputs, wanted, weights = [], [], []
                for at in range(place, place + batch):
                    epoch, position = divmod(at, len(stream.pixels))

                    def of(purpose, epoch=epoch, position=position, stream=stream):
                        return generator(seed, epoch, position, f"{purpose}/{stream.name}")

                    index = int(permutation(seed, epoch, len(stream.pixels), stream.name)[position])
                    with torch.no_grad():
                        posterior = vae.encode(stream.pixels[index][None]).latent_dist
                        shape = posterior.mean.shape[1:]
                        latents = posterior.mean + posterior.std * torch.randn(shape, generator=of("latent"))
                        latents = latents * vae.config.scaling_factor
                        noise = torch.randn(shape, generator=of("noise"))[None]
                        noise += noise_offset * torch.randn(shape[0], 1, 1, generator=of("noise_offset"))
                        extra = torch.randn(shape, generator=of("input_perturbation"))
                        added = noise + input_perturbation * extra
                        timestep = torch.randint(0, 1000, (1,), generator=of("timestep"))
                        emptied = torch.rand((), generator=of("empty_prompt")) < empty_prompts
                        text = "" if emptied else stream.captions[index]
                    told = prompts.told(text)
                    with torch.no_grad():
                        noisy = noise_scheduler.add_noise(latents, added, timestep)
                        inputs.append({"sample": noisy, "timestep": timestep, **told})
                        if prediction_type == "epsilon":
                            wanted.append(noise)
                        else:
                            wanted.append(noise_scheduler.get_velocity(latents, noise, timestep))
                        weights.append(min_snr(noise_scheduler, timestep, snr_gamma))
                given = {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
                extra = {name: given.pop(name) for name in ("text_embeds", "time_ids") if name in given}
                prediction = unet(**given, added_cond_kwargs=extra).sample
                errors = mse_loss(prediction, torch.cat(wanted), reduction="none").mean(dim=[1, 2, 3])
                loss = loss + stream.weight * (torch.cat(weights) * errors).mean()
            place += batch
            (loss / accumulation).backward()
            total += loss.item() / accumulation
        norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if ema:
            ema.step(list(trained.values()))
        result.losses.append(total)
        result.grad_norms.append(norm.item())
    if ema:
        ema.copy_to(list(trained.values()))
    result.weights = {name: p.detach() for name, p in trained.items()}
    return result


def min_snr(noise_scheduler: DDPMScheduler, timestep: torch.Tensor, gamma: float | None) -> torch.Tensor:
    """As the scripts of diffusers have it."""
    if gamma is None:
        return torch.ones(1)
    snr = compute_snr(noise_scheduler, timestep)
    least = torch.stack([snr, torch.full_like(snr, gamma)]).min(dim=0).values
    return least / (snr if noise_scheduler.config.prediction_type == "epsilon" else snr + 1)
