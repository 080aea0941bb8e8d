"""The tensors that each part of a pipeline must have, computed from its config: names and shapes, no torch.

The layouts are those of diffusers' UNet2DConditionModel and AutoencoderKL and of transformers' CLIPTextModel, as
Stable Diffusion 1.x, 2.x and XL use them. A config that asks for anything else gives None: then nothing can be said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Expected:
    """The shape of a tensor, and the config key that decides it."""

    shape: tuple[int, ...]
    key: str


Tensors = Iterator[tuple[str, Expected]]
_WIDTHS = "block_out_channels"


class _Unknown(Exception):
    """A config beyond the layouts that are known here."""


# Names in older files, as diffusers and transformers read them.
_OLD_NAMES = (
    (re.compile(r"^text_model\."), ""),
    (re.compile(r"(mid_block\.attentions\.0\.)query\."), r"\1to_q."),
    (re.compile(r"(mid_block\.attentions\.0\.)key\."), r"\1to_k."),
    (re.compile(r"(mid_block\.attentions\.0\.)value\."), r"\1to_v."),
    (re.compile(r"(mid_block\.attentions\.0\.)proj_attn\."), r"\1to_out.0."),
)


def todays_name(name: str) -> str:
    """The name of a tensor as the functions below give it."""
    for pattern, replacement in _OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name


# --- layers ------------------------------------------------------------------------------------------


def _linear(name: str, width: int, inputs: int, key: str, *, bias: bool = True) -> Tensors:
    yield f"{name}.weight", Expected((width, inputs), key)
    if bias:
        yield f"{name}.bias", Expected((width,), key)


def _conv(name: str, width: int, inputs: int, key: str, size: int = 3) -> Tensors:
    yield f"{name}.weight", Expected((width, inputs, size, size), key)
    yield f"{name}.bias", Expected((width,), key)


def _norm(name: str, width: int, key: str) -> Tensors:
    yield f"{name}.weight", Expected((width,), key)
    yield f"{name}.bias", Expected((width,), key)


def _resnet(name: str, inputs: int, width: int, time: int = 0) -> Tensors:
    """A residual block, with a projection of the time embedding where it gets one."""
    yield from _norm(f"{name}.norm1", inputs, _WIDTHS)
    yield from _conv(f"{name}.conv1", width, inputs, _WIDTHS)
    if time:
        yield from _linear(f"{name}.time_emb_proj", width, time, _WIDTHS)
    yield from _norm(f"{name}.norm2", width, _WIDTHS)
    yield from _conv(f"{name}.conv2", width, width, _WIDTHS)
    if inputs != width:
        yield from _conv(f"{name}.conv_shortcut", width, inputs, _WIDTHS, size=1)


def _transformer(name: str, width: int, context: int, *, depth: int, linear: bool) -> Tensors:
    """Self-attention, cross-attention to the text, and a gated feed-forward layer (GEGLU), `depth` times."""
    yield from _norm(f"{name}.norm", width, _WIDTHS)
    for projection in ("proj_in", "proj_out"):
        if linear:
            yield from _linear(f"{name}.{projection}", width, width, "use_linear_projection")
        else:
            yield from _conv(f"{name}.{projection}", width, width, "use_linear_projection", size=1)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for norm in ("norm1", "norm2", "norm3"):
            yield from _norm(f"{block}.{norm}", width, _WIDTHS)
        for attention, inputs, key in (("attn1", width, _WIDTHS), ("attn2", context, "cross_attention_dim")):
            yield from _linear(f"{block}.{attention}.to_q", width, width, _WIDTHS, bias=False)
            yield from _linear(f"{block}.{attention}.to_k", width, inputs, key, bias=False)
            yield from _linear(f"{block}.{attention}.to_v", width, inputs, key, bias=False)
            yield from _linear(f"{block}.{attention}.to_out.0", width, width, _WIDTHS)
        yield from _linear(f"{block}.ff.net.0.proj", 8 * width, width, _WIDTHS)
        yield from _linear(f"{block}.ff.net.2", width, 4 * width, _WIDTHS)


# --- U-Net -------------------------------------------------------------------------------------------

_UNET_DEFAULTS: Config = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "use_linear_projection": False,
    "addition_embed_type": None,
}
# What else a config may say, with the one value that leaves the layout as it is here.
_UNET_PLAIN: Config = {
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "time_embedding_type": "positional",
    "attention_type": "default",
    "resnet_time_scale_shift": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
}
_UNET_ABSENT = (
    "time_embedding_dim",
    "time_cond_proj_dim",
    "timestep_post_act",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "cross_attention_norm",
    "dual_cross_attention",
    "only_cross_attention",
    "mid_block_only_cross_attention",
    "reverse_transformer_layers_per_block",
    "class_embeddings_concat",
)


def unet(config: Config) -> dict[str, Expected] | None:
    """Name → shape of every tensor of the U-Net."""
    return _collected(lambda: _unet(_plain(config, _UNET_DEFAULTS, _UNET_PLAIN, _UNET_ABSENT)))


def _unet(config: Config) -> Tensors:
    widths = _whole_numbers(config["block_out_channels"])
    down, up = _types(config, "down_block_types", len(widths)), _types(config, "up_block_types", len(widths))
    layers, time = _whole(config["layers_per_block"]), 4 * widths[0]
    depths = _for_each(config["transformer_layers_per_block"], len(widths))
    context, linear = _whole(config["cross_attention_dim"]), bool(config["use_linear_projection"])

    def attention(name: str, level: int) -> Tensors:
        return _transformer(name, widths[level], context, depth=depths[level], linear=linear)

    yield from _conv("conv_in", widths[0], _whole(config["in_channels"]), "in_channels")
    yield from _linear("time_embedding.linear_1", time, widths[0], _WIDTHS)
    yield from _linear("time_embedding.linear_2", time, time, _WIDTHS)
    if config["addition_embed_type"] is not None:
        key = "projection_class_embeddings_input_dim"
        if config["addition_embed_type"] != "text_time":
            raise _Unknown
        yield from _linear("add_embedding.linear_1", time, _whole(config.get(key)), key)
        yield from _linear("add_embedding.linear_2", time, time, _WIDTHS)
    for number, (width, inputs) in enumerate(zip(widths, (widths[0], *widths), strict=False)):
        block = f"down_blocks.{number}"
        for layer in range(layers):
            yield from _resnet(f"{block}.resnets.{layer}", width if layer else inputs, width, time)
            if down[number] == "CrossAttnDownBlock2D":
                yield from attention(f"{block}.attentions.{layer}", number)
        if number < len(widths) - 1:
            yield from _conv(f"{block}.downsamplers.0.conv", width, width, _WIDTHS)
    for layer in range(2):
        yield from _resnet(f"mid_block.resnets.{layer}", widths[-1], widths[-1], time)
    yield from attention("mid_block.attentions.0", len(widths) - 1)
    rising = widths[::-1]
    for number, width in enumerate(rising):
        block = f"up_blocks.{number}"
        before, skipped = rising[max(0, number - 1)], rising[min(number + 1, len(rising) - 1)]
        for layer in range(layers + 1):
            inputs = (width if layer else before) + (skipped if layer == layers else width)
            yield from _resnet(f"{block}.resnets.{layer}", inputs, width, time)
            if up[number] == "CrossAttnUpBlock2D":
                yield from attention(f"{block}.attentions.{layer}", len(widths) - 1 - number)
        if number < len(rising) - 1:
            yield from _conv(f"{block}.upsamplers.0.conv", width, width, _WIDTHS)
    yield from _norm("conv_norm_out", widths[0], _WIDTHS)
    yield from _conv("conv_out", _whole(config["out_channels"]), widths[0], "out_channels")


# --- VAE ---------------------------------------------------------------------------------------------

_VAE_DEFAULTS: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
_VAE_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def vae(config: Config) -> dict[str, Expected] | None:
    """Name → shape of every tensor of the VAE, with today's names of its attention layers."""
    usual = all(set(config.get(key, ())) <= {kind} for key, kind in _VAE_BLOCKS.items())
    plain = {"mid_block_add_attention": True}
    return _collected(lambda: _vae(_plain(config, _VAE_DEFAULTS, plain, ()))) if usual else None


def _vae(config: Config) -> Tensors:
    widths, layers = _whole_numbers(config["block_out_channels"]), _whole(config["layers_per_block"])
    latent, key = _whole(config["latent_channels"]), "latent_channels"
    yield from _conv("encoder.conv_in", widths[0], _whole(config["in_channels"]), "in_channels")
    yield from _vae_blocks("encoder.down_blocks", "downsamplers", widths, widths[0], layers)
    yield from _vae_middle("encoder.mid_block", widths[-1])
    yield from _norm("encoder.conv_norm_out", widths[-1], _WIDTHS)
    yield from _conv("encoder.conv_out", 2 * latent, widths[-1], key)
    yield from _conv("decoder.conv_in", widths[-1], latent, key)
    yield from _vae_middle("decoder.mid_block", widths[-1])
    yield from _vae_blocks("decoder.up_blocks", "upsamplers", widths[::-1], widths[-1], layers + 1)
    yield from _norm("decoder.conv_norm_out", widths[0], _WIDTHS)
    yield from _conv("decoder.conv_out", _whole(config["out_channels"]), widths[0], "out_channels")
    if config["use_quant_conv"]:
        yield from _conv("quant_conv", 2 * latent, 2 * latent, key, size=1)
    if config["use_post_quant_conv"]:
        yield from _conv("post_quant_conv", latent, latent, key, size=1)


def _vae_blocks(name: str, samplers: str, widths: Sequence[int], inputs: int, layers: int) -> Tensors:
    for number, width in enumerate(widths):
        for layer in range(layers):
            yield from _resnet(f"{name}.{number}.resnets.{layer}", width if layer else inputs, width)
        if number < len(widths) - 1:
            yield from _conv(f"{name}.{number}.{samplers}.0.conv", width, width, _WIDTHS)
        inputs = width


def _vae_middle(name: str, width: int) -> Tensors:
    for layer in range(2):
        yield from _resnet(f"{name}.resnets.{layer}", width, width)
    yield from _norm(f"{name}.attentions.0.group_norm", width, _WIDTHS)
    for layer_name in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from _linear(f"{name}.attentions.0.{layer_name}", width, width, _WIDTHS)


# --- text encoder ------------------------------------------------------------------------------------

TEXT_DEFAULTS: Config = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "max_position_embeddings": 77,
}


def text_encoder(config: Config) -> dict[str, Expected] | None:
    """Name → shape of every tensor of the text encoder, without the prefix `text_model.` of older files."""
    return _collected(lambda: _text_encoder(_plain(config, TEXT_DEFAULTS, {}, ())))


def text_encoder_2(config: Config) -> dict[str, Expected] | None:
    """The same of the second text encoder of XL, which has a projection."""
    expected = text_encoder(config)
    width, inputs = config.get("projection_dim", 512), config.get("hidden_size", TEXT_DEFAULTS["hidden_size"])
    if expected is None or not isinstance(width, int):
        return None
    return {**expected, "text_projection.weight": Expected((width, inputs), "projection_dim")}


def _text_encoder(config: Config) -> Tensors:
    width, key = _whole(config["hidden_size"]), "hidden_size"
    inner = _whole(config["intermediate_size"])
    tokens = Expected((_whole(config["vocab_size"]), width), "vocab_size")
    places = Expected((_whole(config["max_position_embeddings"]), width), "max_position_embeddings")
    yield "embeddings.token_embedding.weight", tokens
    yield "embeddings.position_embedding.weight", places
    for number in range(_whole(config["num_hidden_layers"])):
        layer = f"encoder.layers.{number}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{projection}", width, width, key)
        yield from _norm(f"{layer}.layer_norm1", width, key)
        yield from _norm(f"{layer}.layer_norm2", width, key)
        yield from _linear(f"{layer}.mlp.fc1", inner, width, "intermediate_size")
        yield from _linear(f"{layer}.mlp.fc2", width, inner, "intermediate_size")
    yield from _norm("final_layer_norm", width, key)


# --- reading configs ---------------------------------------------------------------------------------


def _collected(tensors: Any) -> dict[str, Expected] | None:
    try:
        return dict(tensors())
    except _Unknown:
        return None


def _plain(config: Config, defaults: Config, plain: Config, absent: Sequence[str]) -> Config:
    """The config with its defaults; raises _Unknown where it leaves the known layout."""
    if any(config.get(key, value) != value for key, value in plain.items()):
        raise _Unknown
    if any(config.get(key) for key in absent):
        raise _Unknown
    return {**defaults, **{key: value for key, value in config.items() if value is not None}}


def _types(config: Config, key: str, count: int) -> Sequence[str]:
    """The kinds of the blocks, one a width."""
    kinds = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }[key]
    found = config[key]
    if not isinstance(found, list | tuple) or len(found) != count or not set(found) <= set(kinds):
        raise _Unknown
    return found


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _Unknown
    return value


def _for_each(value: Any, count: int) -> list[int]:
    """A number, or a list with one for each width."""
    numbers = _whole_numbers(value) if isinstance(value, list | tuple) else [_whole(value)] * count
    if len(numbers) != count:
        raise _Unknown
    return numbers


def _whole_numbers(value: Any) -> list[int]:
    if not isinstance(value, list | tuple) or not value:
        raise _Unknown
    return [_whole(item) for item in value]
