"""Tensor names of diffusers and of the original Stable Diffusion (github.com/CompVis/stable-diffusion, and
github.com/Stability-AI/stablediffusion and generative-models), which models in one file have.

One table of modules serves both directions: exports write the original names, headers of single files are read by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sdjob.model.architectures import ArchitectureFacts
from sdjob.model.weights import Tensor

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."  # of Stable Diffusion 1.x
OPEN_CLIP = "cond_stage_model.model."  # of 2.x
XL_CLIP = "conditioner.embedders.0.transformer.text_model."
XL_OPEN_CLIP = "conditioner.embedders.1.model."
EMA = "model_ema."  # of the U-Net's weights
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"  # empty tensors, whose presence is the information

Config = Mapping[str, Any]
Modules = Iterator[tuple[str, str]]  # diffusers' name, original name

_OLDER_NAMES = (
    (re.compile(r"^text_model\."), ""),
    (re.compile(r"(mid_block\.attentions\.0\.)query\."), r"\1to_q."),
    (re.compile(r"(mid_block\.attentions\.0\.)key\."), r"\1to_k."),
    (re.compile(r"(mid_block\.attentions\.0\.)value\."), r"\1to_v."),
    (re.compile(r"(mid_block\.attentions\.0\.)proj_attn\."), r"\1to_out.0."),
)
_PROJECTION = "text_projection.weight"
_QKV = re.compile(r"(?<=\.self_attn\.)([qkv])_proj\.(?=weight|bias)")
_IN_PROJ = re.compile(r"(.+\.attn)\.in_proj_(weight|bias)")


def kohya_layers(
    facts: ArchitectureFacts, part: str, config: Config, layers: Iterable[str]
) -> dict[str, str]:
    """Layer of a part → its name in a LoRA of kohya's programs: prefix of the part, and the layer with underscores."""
    names = {layer: f"{layer}.weight" for layer in layers}
    if part in facts.kohya_original:
        originals = original_tensors(facts.original_layout or "", part, config, names.values())
        names = {
            layer: originals[current_name(name)].name.removeprefix(UNET) for layer, name in names.items()
        }
    prefix = facts.kohya_prefixes[part]
    return {
        layer: f"{prefix}_{name.removesuffix('.weight').replace('.', '_')}" for layer, name in names.items()
    }


def current_name(name: str) -> str:
    """The name of a tensor in current versions of diffusers and transformers, which read older files too."""
    for pattern, replacement in _OLDER_NAMES:
        name = pattern.sub(replacement, name)
    return name


def stored_name(name: str) -> str:
    """The name of a CLIP text encoder's tensor that every version of transformers reads.

    All but the projection is below `text_model`, which recent versions leave out in memory.
    """
    return name if name.startswith("text_projection.") else f"text_model.{name.removeprefix('text_model.')}"


def is_open_clip(text_encoder: Config) -> bool:
    """Whether a text encoder is OpenCLIP's, as in 2.x, and not OpenAI's: their activation functions differ."""
    return bool(text_encoder.get("hidden_act", "quick_gelu") == "gelu")


@dataclass(frozen=True)
class OriginalTensor:
    """Where a tensor of diffusers is in the original layout."""

    name: str
    third: int | None = None  # of a matrix with the rows of query, key and value one below the other
    transposed: bool = False
    pixelwise: bool = False  # a linear layer as a convolution of 1 × 1: two more dimensions


def original_tensors(
    layout: str, part: str, config: Config, names: Iterable[str]
) -> dict[str, OriginalTensor]:
    """Current diffusers name → original tensor, for all tensors of a part. `layout`: a row of LAYOUTS."""
    names_of_part = _PartNames.of(layout, part, config)
    found = {}
    for name in map(current_name, names):
        original = names_of_part.prefix + _renamed(name, names_of_part.modules)
        qkv = _QKV.search(name) if names_of_part.open_clip else None
        found[name] = OriginalTensor(
            re.sub(r"\.[qkv]_proj\.(\w+)$", r".in_proj_\1", original) if qkv else original,
            third="qkv".index(qkv[1]) if qkv else None,
            transposed=names_of_part.open_clip and name == _PROJECTION,
            pixelwise=_is_pixelwise(part, name),
        )
    return found


def diffusers_tensors(
    layout: str, part: str, config: Config, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a part among all of a single file, by their current diffusers names and with those shapes.

    Tensors of OpenCLIP that the part does not use (its last layer, in 2.x) are left out.
    """
    names_of_part = _PartNames.of(layout, part, config)
    open_clip = names_of_part.open_clip
    prefix = names_of_part.prefix.removesuffix("text_model.")  # which some programs leave out
    modules = {theirs: ours for ours, theirs in names_of_part.modules.items()}
    found: dict[str, Tensor] = {}
    for full_name, tensor in tensors.items():
        if not full_name.startswith(prefix):
            continue
        original, shape = full_name.removeprefix(prefix), tensor.shape
        if open_clip and (stacked := _IN_PROJ.fullmatch(original)):
            third = replace(tensor, shape=(*(length // 3 for length in shape[:1]), *shape[1:]))
            if module := modules.get(stacked[1]):
                found |= {f"{module}.{letter}_proj.{stacked[2]}": third for letter in "qkv"}
            continue
        name = current_name(_renamed(original, modules))
        if open_clip and name == original:
            continue
        if open_clip and name == _PROJECTION:
            shape = shape[::-1]
        found[name] = replace(tensor, shape=shape[:2] if _is_pixelwise(part, name) else shape)
    return found


def _is_pixelwise(part: str, name: str) -> bool:
    is_attention = part == "vae" and ".attentions." in name and ".group_norm." not in name
    return is_attention and name.endswith(".weight")


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    """The name with its longest known beginning replaced; unchanged where none is known."""
    words = name.split(".")
    for end in range(len(words), 0, -1):
        if (module := modules.get(".".join(words[:end]))) is not None:
            return ".".join((module, *words[end:]))
    return name


@dataclass(frozen=True)
class _Encoder:
    """The prefixes of a text encoder's tensors: as OpenAI's CLIP, as OpenCLIP's; "": it never is one."""

    clip: str = ""
    open_clip: str = ""
    projected: bool = False  # whether it uses the projection that OpenCLIP's files hold


# Layouts of single files, which ArchitectureFacts.original_layout names: part → names of its text encoder. U-Net and
# VAE have the same names in all of them.
LAYOUTS: Mapping[str, Mapping[str, _Encoder]] = {
    "stable-diffusion": {"text_encoder": _Encoder(CLIP, OPEN_CLIP)},
    "stable-diffusion-xl": {
        "text_encoder": _Encoder(XL_CLIP),
        "text_encoder_2": _Encoder(open_clip=XL_OPEN_CLIP, projected=True),
    },
}


@dataclass(frozen=True)
class _PartNames:
    """The original names of a part: prefix of its tensors, and diffusers' modules → original modules."""

    prefix: str
    modules: Mapping[str, str]
    open_clip: bool = False

    @classmethod
    def of(cls, layout: str, part: str, config: Config) -> _PartNames:
        if part == "unet":
            return cls(UNET, dict(_unet(config)))
        if part == "vae":
            return cls(VAE, dict(_vae(config)))
        encoder = LAYOUTS[layout][part]
        if not encoder.open_clip or (encoder.clip and not is_open_clip(config)):
            return cls(encoder.clip, {})
        modules = dict(_open_clip(config))
        if not encoder.projected:
            del modules[_PROJECTION]
        return cls(encoder.open_clip, modules, open_clip=True)


# --- U-Net: UNet2DConditionModel ---------------------------------------------------------------------

_UP_BLOCKS = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)  # diffusers' default
_UNET_MODULES = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.attentions.0": "middle_block.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def _unet(config: Config) -> Modules:
    """The original numbers the layers of all blocks through: a down block has `layers_per_block` layers and a
    downsampler; an up block one layer more, the last of which holds the upsampler.
    """
    layers, up_blocks = config.get("layers_per_block", 2), config.get("up_block_types", _UP_BLOCKS)
    yield from _UNET_MODULES.items()
    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield from _resnet("mid_block.resnets.1", "middle_block.2")
    for block, up_block in enumerate(up_blocks):
        first = block * (layers + 1)
        for layer in range(layers + 1):
            down, up = f"input_blocks.{first + layer + 1}", f"output_blocks.{first + layer}"
            if layer < layers:
                yield from _resnet(f"down_blocks.{block}.resnets.{layer}", f"{down}.0")
                yield f"down_blocks.{block}.attentions.{layer}", f"{down}.1"
            else:
                position = 2 if up_block.startswith("CrossAttn") else 1
                yield f"down_blocks.{block}.downsamplers.0.conv", f"{down}.0.op"
                yield f"up_blocks.{block}.upsamplers.0.conv", f"{up}.{position}.conv"
            yield from _resnet(f"up_blocks.{block}.resnets.{layer}", f"{up}.0")
            yield f"up_blocks.{block}.attentions.{layer}", f"{up}.1"


def _resnet(ours: str, theirs: str) -> Modules:
    yield from ((f"{ours}.{ours_in}", f"{theirs}.{theirs_in}") for ours_in, theirs_in in _RESNET.items())


# --- VAE: AutoencoderKL ------------------------------------------------------------------------------

_VAE_MODULES = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
}


def _vae(config: Config) -> Modules:
    """The original counts the decoder's blocks from the pixels, diffusers from the latents."""
    blocks = len(config.get("block_out_channels", (64,)))
    for side, way, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        yield from ((f"{side}.{ours}", f"{side}.{theirs}") for ours, theirs in _VAE_MODULES.items())
        for block in range(blocks):
            ours = f"{side}.{way}_blocks.{block}"
            theirs = f"{side}.{way}.{block if way == 'down' else blocks - 1 - block}"
            yield f"{ours}.resnets", f"{theirs}.block"
            yield f"{ours}.resnets.0.conv_shortcut", f"{theirs}.block.0.nin_shortcut"
            yield f"{ours}.{sampler}rs.0.conv", f"{theirs}.{sampler}.conv"


# --- OpenCLIP's text model (github.com/mlfoundations/open_clip) ---------------------------------------


def _open_clip(config: Config) -> Modules:
    """Query, key and value of a layer are one matrix there, and the projection is applied from the other side."""
    yield "embeddings.token_embedding", "token_embedding"
    yield "embeddings.position_embedding.weight", "positional_embedding"
    yield "final_layer_norm", "ln_final"
    yield _PROJECTION, "text_projection"
    for number in range(config.get("num_hidden_layers", 12)):
        ours, theirs = f"encoder.layers.{number}", f"transformer.resblocks.{number}"
        yield f"{ours}.self_attn", f"{theirs}.attn"
        yield f"{ours}.layer_norm1", f"{theirs}.ln_1"
        yield f"{ours}.layer_norm2", f"{theirs}.ln_2"
        yield f"{ours}.mlp.fc1", f"{theirs}.mlp.c_fc"
        yield f"{ours}.mlp.fc2", f"{theirs}.mlp.c_proj"
