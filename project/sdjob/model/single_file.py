"""A model in one file, in the layout of the original Stable Diffusion: which type it is, from its header only.

The worker makes a diffusers folder of it (sdtrain/model/convert.py), with the configs of its type from configs/ or
from the folder that `single_file_config` names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdjob.file_identity import content_id
from sdjob.files import few, read_file, shown, unreadable
from sdjob.formatting import counted
from sdjob.model import key_names, torch_zip
from sdjob.model.weights import Header, Tensor, read_header
from sdjob.problems import JobError, Problem, bad_input, bad_setting

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
AUTO = "auto"
_CONFIGS = Path(__file__).with_name("configs")
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04")  # of torch before 1.6, or of another program
WHOLE_MODEL = (
    "use a whole checkpoint of Stable Diffusion 1.x, 2.x or XL base: U-Net, VAE and text encoder in one file"
)
_FIRST = f"{key_names.UNET}input_blocks.0.0.weight"
_CROSS_ATTENTION = re.compile(
    re.escape(key_names.UNET) + r"input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight"
)
_SECOND_CONDITIONING = f"{key_names.UNET}label_emb.0.0.weight"  # sizes and pooled text, in XL
_CHANNELS = {9: "an inpainting model", 8: "a model that edits images", 5: "a depth model", 7: "an upscaler"}
_OTHER_CONTENT = (  # what else is distributed as a single file: words in the names of its tensors → message
    (("lora_up.", "lora_A.", "lora_B.", ".lokr_", ".hada_"), "is a LoRA, not a model"),
    (("double_blocks.",), "is a FLUX model"),
    (("joint_blocks.",), "is a model of Stable Diffusion 3"),
    (("control_model.", "controlnet_", "input_hint_block."), "is a ControlNet"),
    (("emb_params", "string_to_param", "clip_l", "clip_g"), "is a textual inversion, not a model"),
    (("down_blocks.0.resnets.0.time_emb_proj.",), "holds only a U-Net, in the layout of diffusers"),
    (("first_stage_model.", "decoder.mid", "encoder.mid"), "holds only a VAE"),
    (("cond_stage_model.", "conditioner.", "text_model."), "holds only a text encoder"),
)
_EDM_SCHEDULE = ("edm_mean", "edm_vpred.sigma_max")
_PREDICTIONS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


@dataclass(frozen=True)
class ModelType:
    """A published type; its U-Net is recognised by the width of its text input, and by its second conditioning.

    Its architecture is the class in model_index.json of its configs, whose `original_layout` names its tensors.
    """

    title: str
    text_width: int
    configs: Mapping[str, str]  # prediction type → folder in configs/
    second_conditioning: bool = False
    default_prediction: str | None = "epsilon"  # the prediction type of files that do not state it


TYPES = (
    ModelType("Stable Diffusion 1.x", 768, dict.fromkeys(("epsilon", "v_prediction"), "stable_diffusion_1")),
    ModelType(
        "Stable Diffusion 2.x",
        1024,
        {"epsilon": "stable_diffusion_2_base", "v_prediction": "stable_diffusion_2"},
        default_prediction=None,
    ),
    ModelType(
        "Stable Diffusion XL",
        2048,
        dict.fromkeys(("epsilon", "v_prediction"), "stable_diffusion_xl"),
        second_conditioning=True,
    ),
)


@dataclass(frozen=True)
class SingleFile:
    """A model in one file, and the configs that it needs to become a diffusers folder."""

    path: Path
    title: str
    configs: Path  # a diffusers folder, whose weights are not used
    scheduler: Mapping[str, Any]  # what its scheduler_config.json says differently
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def warnings(self) -> list[str]:
        """That the file holds EMA weights, which are not used."""
        count = sum(name.startswith(key_names.EMA) for name in self.tensors)
        ema = f"{shown(self.path)}: {count:,} EMA tensors ({key_names.EMA}…) are ignored"
        return [f"{ema}: the other weights are trained"] if count else []

    @property
    def is_published(self) -> bool:
        """Whether the configs are those that come with this project, whose tokenizers all have CLIP's vocabulary."""
        return self.configs.parent == _CONFIGS

    def config_files(self) -> dict[str, Path]:
        """The files of the folder that are neither weights nor their indices, by their names below it."""
        files = (*self.configs.glob("*.json"), *self.configs.glob("*/*.json"), *self.configs.glob("*/*.txt"))
        return {
            path.relative_to(self.configs).as_posix(): path
            for path in sorted(files)
            if ".index." not in path.name
        }


def read(path: Path, configs: Path | None, prediction_type: str, *, allow_pickle: bool) -> SingleFile:
    """The model in a file. Raises JobError.

    `configs`: those of another architecture. `prediction_type`: "auto", or what the model predicts where the file
    does not state it, or not correctly.
    """
    header = header_of(path, allow_pickle=allow_pickle)
    tensors = header.tensors
    if problem := _refusal(path, tensors):
        raise JobError(problem)
    if configs:
        given = {} if prediction_type == AUTO else {"prediction_type": prediction_type}
        return SingleFile(path, f"a model like {shown(configs)}", configs, given, tensors)
    model_type = _type_of(path, tensors)
    if prediction_type == AUTO:
        prediction_type = _stated_prediction(header) or model_type.default_prediction or ""
    if not prediction_type:
        found = (
            f"auto, and {shown(path)} does not state what it predicts; files of {model_type.title} need not"
        )
        remedy = (
            "Set prediction_type=v_prediction for a model trained at 768 pixels, "
            "or prediction_type=epsilon for one trained at 512 (the base)."
        )
        raise JobError(bad_setting("prediction_type", found, remedy))
    scheduler: dict[str, Any] = {"prediction_type": prediction_type}
    if key_names.ZERO_SNR in tensors and prediction_type == "v_prediction":
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    folder = _CONFIGS / model_type.configs[prediction_type]
    return SingleFile(path, model_type.title, folder, scheduler, tensors)


def refusal(path: Path, *, allow_pickle: bool) -> Problem | None:
    """Why a file is not a model that can be trained: a LoRA, a VAE or the like. Raises JobError if it is broken."""
    return _refusal(path, header_of(path, allow_pickle=allow_pickle).tensors)


def may_be_model(path: Path) -> bool:
    """Judged by the suffix or the first bytes: a mounted file may have any name. Raises OSError."""
    if path.name.endswith(SUFFIXES):
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start.startswith((torch_zip.MAGIC, *_PICKLES)) or start[8:] == b"{"


def converted_folder(single: SingleFile, cache: Path) -> Path:
    """The path of the folder that is made of a file, below `cache`. Raises JobError.

    Its name is a hash of the configs and the content of the file.
    """
    digest = hashlib.blake2b(repr(sorted(single.scheduler.items())).encode(), digest_size=8)
    for name, path in single.config_files().items():
        digest.update(f"{name}\0".encode() + read_file(path))
    digest.update(content_of(single.path))
    return cache / f"model-{digest.hexdigest()}"


def content_of(path: Path) -> bytes:
    """The identity of a file by its content. Raises JobError."""
    try:
        return content_id(path).encode()
    except OSError as error:
        raise JobError(unreadable(path, error)) from error


def header_of(path: Path, *, allow_pickle: bool) -> Header:
    """The header of a file that is complete. Raises JobError."""
    start = read_file(path, 4)
    if start != torch_zip.MAGIC and not start.startswith(_PICKLES):
        return read_header(path)
    if not allow_pickle:
        found = "is a pickle, which can run code when it is loaded"
        remedy = "use the .safetensors file of this model, or trust this one with allow_pickle=1"
        raise JobError(bad_input(shown(path), found, remedy))
    if start != torch_zip.MAGIC:
        raise JobError(torch_zip.old_format(path))
    return Header(torch_zip.read_tensors(path), {})


def _refusal(path: Path, tensors: Mapping[str, Tensor]) -> Problem | None:
    """Why this cannot be a model of a supported architecture, whatever its sizes."""
    first = tensors.get(_FIRST)
    if first is None:
        for words, found in _OTHER_CONTENT:
            if any(word in name for name in tensors for word in words):
                remedy = "mount its base model" if "LoRA" in found else WHOLE_MODEL
                return bad_input(shown(path), found, remedy)
        such_as = f", such as {few(sorted(tensors), 2)}" if tensors else ""
        found = f"is not a model of Stable Diffusion: it holds {counted(len(tensors), 'tensor')}{such_as}"
        return bad_input(shown(path), found, WHOLE_MODEL)
    channels = first.shape[1] if len(first.shape) > 1 else 0
    if channels != 4:
        what = f" ({_CHANNELS[channels]})" if channels in _CHANNELS else ""
        found = f"has a U-Net with {channels} input channels instead of 4{what}, which this version does not train"
        return bad_input(shown(path), found, WHOLE_MODEL)
    if any(name in tensors for name in _EDM_SCHEDULE):
        found = "was trained with an EDM noise schedule, which this version does not support"
        return bad_input(shown(path), found, WHOLE_MODEL)
    return None


def _type_of(path: Path, tensors: Mapping[str, Tensor]) -> ModelType:
    """The published type with this U-Net. Raises JobError."""
    widths = {
        tensor.shape[1]
        for name, tensor in tensors.items()
        if _CROSS_ATTENTION.fullmatch(name) and len(tensor.shape) == 2
    }
    second = _SECOND_CONDITIONING in tensors
    for model_type in TYPES:
        if widths == {model_type.text_width} and second == model_type.second_conditioning:
            return model_type
    if widths == {1280} and second:
        found = "is a refiner of Stable Diffusion XL, which this version does not train"
        raise JobError(bad_input(shown(path), found, WHOLE_MODEL))
    if second and widths <= {model_type.text_width for model_type in TYPES}:
        found = "has a U-Net with conditioning other than text (unCLIP or the like), which this version does not train"
    else:
        known = ", ".join(f"{model_type.text_width} ({model_type.title})" for model_type in TYPES)
        found = (
            f"has a U-Net for text of width {few(map(str, sorted(widths))) or 'none'}; supported are {known}"
        )
    remedy = "for another architecture, set single_file_config to a diffusers folder with its configs"
    raise JobError(bad_input(shown(path), found, remedy))


def _stated_prediction(header: Header) -> str | None:
    """What the file states that its U-Net predicts: by a tensor's presence, or by its metadata (modelspec)."""
    if key_names.V_PREDICTION in header.tensors:
        return "v_prediction"
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):  # the latter is ComfyUI's
        stated = str(header.metadata.get(key, "")).lower().replace("-", "_")
        if stated in _PREDICTIONS:
            return _PREDICTIONS[stated]
    architectures = {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"}
    return architectures.get(str(header.metadata.get("modelspec.architecture", "")))
