"""The names of the original Stable Diffusion (github.com/CompVis/stable-diffusion, github.com/Stability-AI/
stablediffusion and generative-models), in which models are shared as one file: diffusers' name → place there.

Pure: names only. Both ways are read from here: writing such a file, and making a folder of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdjob.model import shapes

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."  # of Stable Diffusion 1.x
OPEN_CLIP = "cond_stage_model.model."  # of 2.x
XL_CLIP = "conditioner.embedders.0.transformer.text_model."
XL_OPEN_CLIP = "conditioner.embedders.1.model."
AVERAGE = "model_ema."  # of the U-Net's weights
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"  # tensors without content, which say something by being there


@dataclass(frozen=True)
class Place:
    """Where a tensor of diffusers lies in the original layout."""

    name: str
    third: int | None = None  # of a matrix with the rows of query, key and value one below the other
    transposed: bool = False
    pixelwise: bool = False  # a linear layer as a convolution of 1 × 1: two more dimensions


def places(part: str, config: Mapping[str, Any], names: Iterable[str], *, xl: bool) -> dict[str, Place]:
    """The place of every tensor of a part, given the names of all of them (those of today)."""
    match part:
        case "unet":
            return unet(names, config.get("layers_per_block", 2))
        case "vae":
            return vae(names, len(config["block_out_channels"]))
        case "text_encoder_2":
            return open_clip(names, XL_OPEN_CLIP)
        case _ if xl:
            return clip(names, XL_CLIP)
        case _ if is_open_clip(config):
            return open_clip(names, OPEN_CLIP)
        case _:
            return clip(names, CLIP)


def is_open_clip(text_encoder: Mapping[str, Any]) -> bool:
    """Whether a text encoder is OpenCLIP's, as in 2.x, and not OpenAI's: they differ in one function."""
    return bool(text_encoder.get("hidden_act", "quick_gelu") == "gelu")


# --- U-Net -------------------------------------------------------------------------------------------

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


def unet(names: Iterable[str], layers_per_block: int) -> dict[str, Place]:
    """A UNet2DConditionModel.

    The original counts its blocks through: each down block is `layers_per_block` layers and a downsampler,
    each up block one layer more, the last with the upsampler.
    """
    names = list(names)
    attends = {name.split(".attentions.")[0] for name in names if ".attentions." in name}
    return {name: Place(UNET + _unet_name(name, layers_per_block + 1, attends)) for name in names}


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


# --- VAE ---------------------------------------------------------------------------------------------

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


def vae(names: Iterable[str], blocks: int) -> dict[str, Place]:
    """An AutoencoderKL of so many blocks; its attention is made of 1 × 1 convolutions."""
    found = {}
    for name in map(shapes.todays_name, names):
        pixelwise = ".attentions." in name and name.endswith(".weight") and ".group_norm." not in name
        found[name] = Place(VAE + _vae_name(name, blocks), pixelwise=pixelwise)
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


# --- text encoders -----------------------------------------------------------------------------------


def clip(names: Iterable[str], prefix: str) -> dict[str, Place]:
    """OpenAI's CLIPTextModel, whose names both layouts share."""
    return {name: Place(prefix + name) for name in map(shapes.todays_name, names)}


_OF_OPEN_CLIP = {
    "embeddings.token_embedding.weight": Place("token_embedding.weight"),
    "embeddings.position_embedding.weight": Place("positional_embedding"),
    "final_layer_norm.weight": Place("ln_final.weight"),
    "final_layer_norm.bias": Place("ln_final.bias"),
    "text_projection.weight": Place("text_projection", transposed=True),
}
_OF_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip(names: Iterable[str], prefix: str) -> dict[str, Place]:
    """OpenCLIP's text model (github.com/mlfoundations/open_clip): query, key and value of a layer are one matrix
    there, and the projection is applied from the other side."""
    found = {}
    for name in map(shapes.todays_name, names):
        if name in _OF_OPEN_CLIP:
            place = _OF_OPEN_CLIP[name]
            found[name] = Place(prefix + place.name, transposed=place.transposed)
            continue
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        if match is None:  # position_ids, which hold nothing
            continue
        layer = f"{prefix}transformer.resblocks.{match[1]}"
        projection = re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", match[2])
        if projection:
            third = "qkv".index(projection[1])
            found[name] = Place(f"{layer}.attn.in_proj_{projection[2]}", third=third)
        else:
            found[name] = Place(f"{layer}.{_renamed(match[2], _OF_OPEN_CLIP_LAYER)}")
    return found


def _split(name: str, parts: Mapping[str, str]) -> tuple[str | None, str]:
    """The other name of the place that a name begins with, and the rest."""
    for ours, theirs in parts.items():
        if name.startswith(f"{ours}."):
            return theirs, name[len(ours) + 1 :]
    return None, name


def _renamed(rest: str, layers: Mapping[str, str]) -> str:
    for ours, theirs in layers.items():
        if rest.startswith(f"{ours}."):
            return theirs + rest[len(ours) :]
    return rest
