"""Pipelines of real sizes with random weights and random images: for benchmarks without a download.

Sizes as in the configs that sdjob.model has for single files.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTokenizer

from sdjob.model import single_file
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Parts
from sdtrain.architectures.stable_diffusion import StableDiffusion
from sdtrain.architectures.stable_diffusion_xl import StableDiffusionXL
from sdtrain.data.batch import Batch, collated, random_inputs
from sdtrain.data.sampling import Sample
from sdtrain.model.load import DTYPES

_END = "<|endoftext|>"
_CONFIGS = Path(single_file.__file__).with_name("configs")
_FOLDERS = {
    "sd14": "stable_diffusion_1",
    "sd2": "stable_diffusion_2_base",
    "sd21": "stable_diffusion_2",
    "sdxl": "stable_diffusion_xl",
    "tiny": "stable_diffusion_1",
}
_TINY: dict[str, dict[str, Any]] = {  # instead of the sizes of sd14
    "unet": {
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "vae": {"block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "norm_num_groups": 2},
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}
RESOLUTIONS = {"sd14": 512, "sd2": 512, "sd21": 768, "sdxl": 1024, "tiny": 32}


def config(model: str, part: str) -> dict[str, Any]:
    """The config of a part of a model of RESOLUTIONS."""
    values = json.loads((_CONFIGS / _FOLDERS[model] / part / "config.json").read_text())
    return {**values, **(_TINY[part] if model == "tiny" else {})}


def parts(model: str, precision: str, device: torch.device, *, lora: bool) -> Parts:
    """A pipeline of the size of a model of RESOLUTIONS; the same weights on every rank."""
    dtype = DTYPES[precision]

    def initialized(build: Callable[[], Any], dtype: torch.dtype) -> Any:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
            torch.manual_seed(0)
            return build().to(dtype).requires_grad_(False).eval()

    architecture = StableDiffusionXL() if model == "sdxl" else StableDiffusion()
    facts = architecture.facts
    process, sampler = architecture.schedulers(_CONFIGS / _FOLDERS[model] / "scheduler", zero_snr=False)
    unet, vae = config(model, "unet"), config(model, "vae")

    def text_encoder(name: str) -> Any:
        of_class = getattr(transformers, facts.components[name].classes[0])
        return initialized(lambda: of_class(CLIPTextConfig.from_dict(config(model, name))), dtype)

    return Parts(
        architecture=architecture,
        denoiser=initialized(
            lambda: UNet2DConditionModel.from_config(unet), dtype if lora else torch.float32
        ),
        vae=initialized(
            lambda: AutoencoderKL.from_config(vae), torch.float32 if facts.vae_in_fp32 else dtype
        ),
        text_encoders={name: text_encoder(name) for name in facts.text_encoders},
        tokenizers={name: _tokenizer() for name in facts.text_encoders},
        process=process,
        sampler=sampler,
        dtype=dtype,
        device=device,
        index={},
    )


def batches(parts: Parts, spec: RunSpec, rank: int) -> Iterator[Batch]:
    """The same random images in every step, on the host; noise and timesteps change with the step."""
    count, size = spec.train_batch_size, (spec.resolution, spec.resolution)
    generator = torch.Generator().manual_seed(rank)
    pixels = torch.randint(256, (count, 3, *size), generator=generator, dtype=torch.uint8)
    token_ids = {name: ids[0] for name, ids in parts.token_ids(["an image"], spec.prompt_chunks).items()}
    common: dict[str, Any] = {"token_ids": token_ids, "weight": 1.0, "name": "synthetic", "skipped": ()}
    if parts.architecture.takes_sizes:
        common["time_ids"] = torch.tensor([*size, 0, 0, *size])
    inputs = random_inputs(parts, spec)
    for step in itertools.count():
        samples = [Sample(step, rank * count + index, index, "synthetic") for index in range(count)]
        examples = [
            {**common, "pixels": image, "random": inputs.of(sample, size)}
            for image, sample in zip(pixels, samples, strict=True)
        ]
        yield collated([examples], [1.0])


def cached(batches: Iterator[Batch], parts: Parts) -> Iterator[Batch]:
    """The same with images and prompts encoded once, on the host, as they come from the caches."""
    first = next(batches)
    assert first.pixels is not None and first.token_ids is not None
    with torch.no_grad():
        posterior = parts.posterior(first.pixels).parameters.cpu()
        encodings = {name: tensor.cpu() for name, tensor in parts.encode(first.token_ids).items()}
    for batch in itertools.chain([first], batches):
        yield replace(batch, pixels=None, posterior=posterior, token_ids=None, encodings=encodings)


def _tokenizer() -> CLIPTokenizer:
    """A tokenizer without merges, one token per byte: the time of a step does not depend on the words of a prompt."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", _END]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=_END, model_max_length=77)
