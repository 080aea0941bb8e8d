"""The keys of other programs: WebUI, ComfyUI and the like read a LoRA in kohya's layout, and whole models in the
layout of the original Stable Diffusion (github.com/CompVis/stable-diffusion, github.com/Stability-AI/stablediffusion).

Pure: from tensors by one name to tensors by another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

Weights = dict[str, torch.Tensor]

_LORA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


def kohya_lora(part: str, layers: Mapping[str, torch.Tensor], alpha: float) -> Weights:
    """A LoRA of one part by peft's names (`….lora_A.weight`) → by kohya's, with the alpha of each layer."""
    found: Weights = {}
    for name, weight in layers.items():
        layer, matrix = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name).groups()  # type: ignore[union-attr]
        key = f"{_LORA_PREFIXES[part]}_{layer.replace('.', '_')}"
        found[f"{key}.lora_{'down' if matrix == 'A' else 'up'}.weight"] = weight
        found[f"{key}.alpha"] = torch.tensor(float(alpha))
    return found


def original_unet(weights: Mapping[str, torch.Tensor], layers_per_block: int) -> Weights:
    """A UNet2DConditionModel → `model.diffusion_model.…`.

    The original counts its blocks through: each down block is `layers_per_block` layers and a downsampler,
    each up block one layer more, the last with the upsampler.
    """
    attends = {name.split(".attentions.")[0] for name in weights if ".attentions." in name}
    return {
        f"model.diffusion_model.{_unet_name(name, layers_per_block + 1, attends)}": weight
        for name, weight in weights.items()
    }


_OF_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_OF_UNET_LAYER = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def _unet_name(name: str, per_block: int, attends: set[str]) -> str:
    place, rest = _split(name, _OF_UNET)
    if place is None:
        match = re.fullmatch(r"((down|up)_blocks\.(\d+))\.(\w+)\.(\d+)\.(.+)", name)
        if match is None:
            raise ValueError(f"no layer of Stable Diffusion's U-Net: {name}")
        block, way, number, kind, layer, rest = match.groups()
        first = int(number) * per_block
        if kind == "downsamplers":
            return f"input_blocks.{first + per_block}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + per_block - 1}.{2 if block in attends else 1}.{rest}"
        side, offset = ("input_blocks", 1) if way == "down" else ("output_blocks", 0)
        place = f"{side}.{first + offset + int(layer)}.{0 if kind == 'resnets' else 1}"
    if ".attentions." not in name:
        rest = _renamed(rest, _OF_UNET_LAYER)
    return f"{place}.{rest}"


_OF_VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
}
_OF_VAE_LAYER = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def original_vae(weights: Mapping[str, torch.Tensor], blocks: int) -> Weights:
    """An AutoencoderKL of so many blocks → `first_stage_model.…`; its attention is made of 1 × 1 convolutions."""
    found: Weights = {}
    for name, weight in weights.items():
        in_attention = ".attentions." in name and not name.endswith(("norm.weight", ".bias"))
        if in_attention and weight.dim() == 2:
            weight = weight[:, :, None, None]
        found[f"first_stage_model.{_vae_name(name, blocks)}"] = weight
    return found


def _vae_name(name: str, blocks: int) -> str:
    side, _, inner = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    place, rest = _split(inner, _OF_VAE)
    if place is None:
        match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", inner)
        if match is None:
            return name
        way, number, kind, layer, rest = match.groups()
        block = int(number) if way == "down" else blocks - 1 - int(number)
        if kind != "resnets":
            return f"{side}.{way}.{block}.{way}sample.{rest}"
        place = f"{way}.{block}.block.{layer}"
    return f"{side}.{place}.{_renamed(rest, _OF_VAE_LAYER)}"


def original_clip(weights: Mapping[str, torch.Tensor]) -> Weights:
    """OpenAI's CLIPTextModel, as Stable Diffusion 1.x has it, → `cond_stage_model.transformer.text_model.…`."""
    return {
        f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": weight
        for name, weight in weights.items()
    }


_OF_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OF_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def original_open_clip(weights: Mapping[str, torch.Tensor]) -> Weights:
    """OpenCLIP's text model, as Stable Diffusion 2.x has it, → `cond_stage_model.model.…`: query, key and value
    of a layer are one matrix there."""
    found: Weights = {}
    named = {name.removeprefix("text_model."): weight for name, weight in weights.items()}
    for name, weight in named.items():
        if name in _OF_OPEN_CLIP:
            found[f"cond_stage_model.model.{_OF_OPEN_CLIP[name]}"] = weight
            continue
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        if match is None:  # position_ids, which hold nothing
            continue
        layer = f"cond_stage_model.model.transformer.resblocks.{match[1]}"
        projection = re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", match[2])
        if projection is None:
            found[f"{layer}.{_renamed(match[2], _OF_OPEN_CLIP_LAYER)}"] = weight
        elif projection[1] == "q":
            three = [named[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            found[f"{layer}.attn.in_proj_{projection[2]}"] = torch.cat(three)
    return found


def _split(name: str, places: Mapping[str, str]) -> tuple[str | None, str]:
    """The other name of the place that a name begins with, and the rest."""
    for ours, theirs in places.items():
        if name.startswith(f"{ours}."):
            return theirs, name[len(ours) + 1 :]
    return None, name


def _renamed(rest: str, layers: Mapping[str, str]) -> str:
    for ours, theirs in layers.items():
        if rest.startswith(f"{ours}."):
            return theirs + rest[len(ours) :]
    return rest
