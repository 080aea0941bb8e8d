"""Facts about each architecture that need no torch: one row for each pipeline class of diffusers.

What an architecture does is a module of its own in sdtrain/architectures. Another architecture is a row here and a
module there. Single files of it: a row of key_names.LAYOUTS if its tensors have other names, and its published types
with their configs in single_file.TYPES.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Component:
    """What a component of a pipeline must be."""

    library: str
    classes: tuple[str, ...]  # accepted in model_index.json, the first of which loads it; empty: any
    config: str | None = None  # file name
    weights: tuple[str, str] | None = None  # stems of the safetensors files and of the pickles
    in_channels: int | None = None  # the number that the config must have; None: any


@dataclass(frozen=True)
class ArchitectureFacts:
    """One family of models, as the launcher and the worker ask about it."""

    class_name: str  # the class of diffusers' pipeline
    name: str  # the name in report.json
    title: str  # the name in messages
    tags: tuple[str, ...]  # tags of the model card
    denoiser: str  # the component that predicts
    denoiser_title: str  # the denoiser's name in messages
    # Of a token: the key of the denoiser's config, and its default in diffusers.
    conditioning_width: tuple[str, int]
    components: Mapping[str, Component]  # all that must be there
    text_encoders: Mapping[str, str]  # text encoder → its tokenizer, in the order of the pipeline
    prediction_types: tuple[str, ...]  # those that the scheduler may name; the first is the default
    lora_targets: tuple[str, ...]  # layers of the denoiser, where the user names none
    text_encoder_lora_targets: tuple[str, ...]
    kohya_prefixes: Mapping[str, str]  # trainable component → prefix of its layers in kohya's LoRA
    optional: tuple[str, ...] = ()  # other components that its pipelines may have; a result has them too
    schedulers: tuple[str, ...] = ()  # those whose noise schedule can be trained with; empty: any
    original_layout: str | None = (
        None  # of single files: a row of key_names.LAYOUTS; None: only folders are read
    )
    kohya_original: tuple[str, ...] = ()  # parts whose layers kohya's LoRA names as the original does
    vae_in_fp32: bool = False  # whatever the precision of the run
    pooled: tuple[str, ...] = ()  # text encoders whose projected output is part of the conditioning
    # Text encoders that end in a layer and a norm that feed nothing, and so get no gradient.
    unused_last_layer: tuple[str, ...] = ()


_DIFFUSERS_WEIGHTS = ("diffusion_pytorch_model", "diffusion_pytorch_model")
_TRANSFORMERS_WEIGHTS = ("model", "pytorch_model")
_UNET = Component("diffusers", ("UNet2DConditionModel",), "config.json", _DIFFUSERS_WEIGHTS, in_channels=4)
_VAE = Component("diffusers", ("AutoencoderKL",), "config.json", _DIFFUSERS_WEIGHTS)
_CLIP = Component("transformers", ("CLIPTextModel",), "config.json", _TRANSFORMERS_WEIGHTS)
_PROJECTED_CLIP = Component(
    "transformers", ("CLIPTextModelWithProjection",), "config.json", _TRANSFORMERS_WEIGHTS
)
_CLIP_TOKENIZER = Component("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"))
_SCHEDULER = Component("diffusers", (), "scheduler_config.json")
# Of diffusers, with the betas of a DDPM. Flow matching and EDM (other inputs and targets) are not among them.
_DDPM_SCHEDULERS = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler"),
    *("LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    *("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler"),
    *("DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler", "IPNDMScheduler"),
    *("LCMScheduler", "TCDScheduler"),
)

STABLE_DIFFUSION = ArchitectureFacts(
    class_name="StableDiffusionPipeline",
    name="stable-diffusion",
    title="Stable Diffusion 1.x or 2.x",
    tags=("stable-diffusion",),
    denoiser="unet",
    denoiser_title="U-Net",
    conditioning_width=("cross_attention_dim", 1280),
    components={
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": _CLIP,
        "tokenizer": _CLIP_TOKENIZER,
        "scheduler": _SCHEDULER,
    },
    text_encoders={"text_encoder": "tokenizer"},
    prediction_types=("epsilon", "v_prediction"),
    lora_targets=("to_k", "to_q", "to_v", "to_out.0"),
    text_encoder_lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),  # as in diffusers' scripts
    kohya_prefixes={"unet": "lora_unet", "text_encoder": "lora_te"},
    optional=("safety_checker", "feature_extractor", "image_encoder"),
    schedulers=_DDPM_SCHEDULERS,
    original_layout="stable-diffusion",
)
STABLE_DIFFUSION_XL = replace(
    STABLE_DIFFUSION,
    class_name="StableDiffusionXLPipeline",
    name="stable-diffusion-xl",
    title="the base of Stable Diffusion XL",
    components={
        **STABLE_DIFFUSION.components,
        "text_encoder_2": _PROJECTED_CLIP,
        "tokenizer_2": _CLIP_TOKENIZER,
    },
    text_encoders={"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
    kohya_prefixes={"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    original_layout="stable-diffusion-xl",
    kohya_original=("unet",),
    vae_in_fp32=True,  # it overflows in fp16
    pooled=("text_encoder_2",),
    unused_last_layer=("text_encoder",),  # the U-Net attends to the input of its last layer
)

ARCHITECTURE_FACTS: Mapping[str, ArchitectureFacts] = {
    row.class_name: row for row in (STABLE_DIFFUSION, STABLE_DIFFUSION_XL)
}


def component_names() -> frozenset[str]:
    return frozenset(name for row in ARCHITECTURE_FACTS.values() for name in row.components)


def titles() -> str:
    """All architectures in words, such as "A, or B"."""
    return ", or ".join(row.title for row in ARCHITECTURE_FACTS.values())
