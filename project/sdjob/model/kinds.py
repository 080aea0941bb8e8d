"""The kinds of Stable Diffusion that are shared as one file, with the configurations that such a file leaves out.

The numbers are those of the published models: Rombach et al. 2022 (arXiv:2112.10752) and its releases 1.x and 2.x,
Podell et al. 2023 (arXiv:2307.01952, tables 1 and 3); what a configuration does not say is diffusers' default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdjob.model import vocabulary
from sdjob.model.architectures import ARCHITECTURES, STABLE_DIFFUSION, STABLE_DIFFUSION_XL

Config = Mapping[str, Any]
_SCHEDULER_FILE = "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class Blueprint:
    """A diffusers pipeline but for its weights: what its parts are, and the files beside them."""

    kind: str  # in words
    class_name: str
    classes: Mapping[str, str]  # part → class
    configs: Mapping[str, Config]  # part → the content of its config.json, or scheduler_config.json
    folders: Mapping[str, Path]  # part → where its tokenizer is to be read, or its mistakes to be fixed
    files: Mapping[
        str, str
    ]  # name below the pipeline's folder → content; those of the vocabulary come with it
    vocabularies: tuple[str, ...] = ()  # tokenizers that get CLIP's vocabulary


@dataclass(frozen=True)
class Kind:
    """One kind, as its U-Net shows it, and what its parts are."""

    name: str
    class_name: str
    context: int  # width of the text that the U-Net attends to
    parts: Mapping[str, Config]
    scheduler: str
    paddings: tuple[str, ...]  # of each tokenizer: the token after the end of a prompt
    silent_means_epsilon: bool = True  # what a file predicts that does not say it


def blueprint(kind: Kind, prediction_type: str, *, zero_snr: bool) -> Blueprint:
    """The pipeline of a kind whose U-Net predicts epsilon or v_prediction."""
    configs: dict[str, Config] = dict(kind.parts)
    if not kind.silent_means_epsilon and prediction_type == "v_prediction":  # those were made for 768 pixels
        configs["unet"] = {**configs["unet"], "sample_size": 96, "upcast_attention": True}
        configs["vae"] = {**configs["vae"], "sample_size": 768}
    configs["scheduler"] = _scheduler(kind.scheduler, prediction_type, zero_snr=zero_snr)
    tokenizers = ("tokenizer", "tokenizer_2")[: len(kind.paddings)]
    components = ARCHITECTURES[kind.class_name].components
    classes = {
        name: (components[name].library, components[name].classes[0]) for name in (*kind.parts, *tokenizers)
    }
    files = {f"{name}/config.json": _text(config) for name, config in _networks(configs, classes).items()}
    files[_SCHEDULER_FILE] = _text(configs["scheduler"])
    for name, padding in zip(tokenizers, kind.paddings, strict=True):
        files[f"{name}/tokenizer_config.json"] = _text(_tokenizer(padding))
    index: dict[str, Any] = {
        "_class_name": kind.class_name,
        **classes,
        "scheduler": ("diffusers", kind.scheduler),
    }
    if kind.class_name == STABLE_DIFFUSION_XL.class_name:
        index["force_zeros_for_empty_prompt"] = True
    else:
        index |= {"safety_checker": (None, None), "feature_extractor": (None, None)}
        index["requires_safety_checker"] = False
    files["model_index.json"] = _text(index)
    return Blueprint(
        kind.name,
        kind.class_name,
        {name: class_name for name, (_, class_name) in classes.items()} | {"scheduler": kind.scheduler},
        configs | {name: {} for name in tokenizers},
        dict.fromkeys((*classes, "scheduler"), vocabulary.FOLDER),
        files,
        tokenizers,
    )


def predicting(plan: Blueprint, prediction_type: str) -> Blueprint:
    """The same pipeline with another kind of prediction."""
    scheduler = {**plan.configs["scheduler"], "prediction_type": prediction_type}
    files = {**plan.files, _SCHEDULER_FILE: _text(scheduler)}
    return replace(plan, configs={**plan.configs, "scheduler": scheduler}, files=files)


def _networks(configs: Mapping[str, Config], classes: Mapping[str, tuple[str, str]]) -> dict[str, Config]:
    """The configurations of the networks, each with the name of its class."""
    key = {"diffusers": "_class_name", "transformers": "architectures"}
    found: dict[str, Config] = {}
    for name, config in configs.items():
        if name == "scheduler":
            continue
        library, class_name = classes[name]
        found[name] = {key[library]: class_name if library == "diffusers" else [class_name], **config}
    return found


def _text(values: Config) -> str:
    return json.dumps(values, indent=2) + "\n"


def _scheduler(class_name: str, prediction_type: str, *, zero_snr: bool) -> Config:
    """The noise schedule of all of them; the sampler that draws with it is a free choice."""
    values: dict[str, Any] = {
        "_class_name": class_name,
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": prediction_type,
        "steps_offset": 1,
        "timestep_spacing": "trailing" if zero_snr else "leading",
        "rescale_betas_zero_snr": zero_snr,
    }
    if class_name == "DDIMScheduler":
        values |= {"clip_sample": False, "set_alpha_to_one": False}
    return values


def _tokenizer(padding: str) -> Config:
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": vocabulary.BEGIN,
        "eos_token": vocabulary.END,
        "unk_token": vocabulary.END,
        "pad_token": padding,
    }


# --- the published architectures ---------------------------------------------------------------------


def _unet(context: int, **more: Any) -> Config:
    """The U-Net of 1.x and 2.x, for images of 512 pixels."""
    return {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": context,
        **more,
    }


def _vae(sample_size: int, scaling_factor: float) -> Config:
    """The autoencoder of all kinds: 8 pixels a side are one latent with 4 channels."""
    return {
        "sample_size": sample_size,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "scaling_factor": scaling_factor,
    }


def _text_encoder(width: int, layers: int, heads: int, hidden_act: str, projection: int) -> Config:
    """A text model of CLIP. It is told its type, since transformers otherwise takes that of the file."""
    return {
        "model_type": "clip_text_model",
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 77,
        "hidden_act": hidden_act,
        "layer_norm_eps": 1e-5,
        "projection_dim": projection,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "torch_dtype": "float32",
    }


_CLIP_L = _text_encoder(768, 12, 12, "quick_gelu", 768)  # OpenAI's ViT-L/14
_AFTER_END, _EXCLAMATION = vocabulary.END, "!"  # the latter has the number 0, with which OpenCLIP pads

SD_1 = Kind(
    "Stable Diffusion 1.x",
    STABLE_DIFFUSION.class_name,
    768,
    {"unet": _unet(768), "vae": _vae(512, 0.18215), "text_encoder": _CLIP_L},
    "DDIMScheduler",
    (_AFTER_END,),
)
SD_2 = Kind(
    "Stable Diffusion 2.x",
    STABLE_DIFFUSION.class_name,
    1024,
    {
        "unet": _unet(1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
        "vae": _vae(512, 0.18215),
        # OpenCLIP's ViT-H/14 without the last of its 24 layers, whose output is not used.
        "text_encoder": _text_encoder(1024, 23, 16, "gelu", 512),
    },
    "DDIMScheduler",
    (_EXCLAMATION,),
    silent_means_epsilon=False,
)
SD_XL = Kind(
    "Stable Diffusion XL",
    STABLE_DIFFUSION_XL.class_name,
    2048,
    {
        "unet": _unet(
            2048,
            sample_size=128,
            block_out_channels=[320, 640, 1280],
            down_block_types=["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
            up_block_types=[*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        "vae": _vae(1024, 0.13025),
        "text_encoder": _CLIP_L,
        "text_encoder_2": _text_encoder(1280, 32, 20, "gelu", 1280),  # OpenCLIP's ViT-bigG/14
    },
    "EulerDiscreteScheduler",
    (_AFTER_END, _EXCLAMATION),
)
KINDS = (SD_1, SD_2, SD_XL)
