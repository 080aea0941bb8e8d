"""Whether the parts of a pipeline belong together, and the settings fit them: from configs only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sdjob.files import read_json, shown
from sdjob.model import trainable
from sdjob.model.pipeline import PipelineFolder
from sdjob.model.weights import COPY_AGAIN, Part
from sdjob.problems import Problem, bad_input, bad_setting
from sdjob.settings.run_spec import RunSpec

_BOUNDARIES = ("<|startoftext|>", "<|endoftext|>")  # without which CLIP's tokenizer encodes no prompt
_EMBEDDING = "embeddings.token_embedding.weight"
_REMEDY = "take all parts of the pipeline from one model"
_IN_CHANNELS = {"UNet2DConditionModel": {"in_channels": 4}}  # the default of diffusers
_CLIP_DEFAULTS = {"hidden_size": 512, "vocab_size": 49408}  # of transformers' CLIPTextConfig


def problems(model: PipelineFolder) -> list[Problem]:
    """What one part passes to the next must have the size that it expects: latents, hidden states, token ids."""
    denoiser, encoders = model.architecture.denoiser, list(model.architecture.text_encoders)
    widths = [_of_clip(model.parts[name].config, "hidden_size") for name in encoders]
    latent_channels = model.parts["vae"].config.get("latent_channels", 4)
    width, default = model.architecture.conditioning_width
    pairs = (
        ("in_channels", "vae", "latent_channels", latent_channels),
        (width, " and ".join(encoders), "hidden_size", sum(widths)),
    )
    config = {width: default, **_IN_CHANNELS.get(model.denoiser.class_name, {}), **model.denoiser.config}
    found = []
    for key, other, other_key, size in pairs:
        own = config.get(key)
        if isinstance(own, int) and own != size:
            what = f"{denoiser}/config.json has {key}={own}, and {other}/config.json {other_key}={size}"
            found.append(bad_input(shown(model.path), what, _REMEDY))
    return [*found, *_token_problems(model)]


def _of_clip(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key, _CLIP_DEFAULTS[key])
    return value if isinstance(value, int) else 0


def _token_problems(model: PipelineFolder) -> Iterator[Problem]:
    """A token id beyond the embedding table would end in an anonymous device-side assert."""
    for encoder, tokenizer in model.architecture.text_encoders.items():
        rows, where = _rows(model.parts[encoder])
        for name, ids in _VOCABULARIES.items():
            path = model.parts[tokenizer].folder / name
            vocabulary = ids(read_json(path)) if path.is_file() else {}
            missing = [token for token in _BOUNDARIES if token not in vocabulary]
            if vocabulary and missing and name != _ADDED:
                yield bad_input(shown(path), f"does not hold {' and '.join(missing)}", COPY_AGAIN)
            largest = max((number for number in vocabulary.values() if isinstance(number, int)), default=0)
            if largest >= rows:
                found = f"has token ids up to {largest}, and the embedding in {where} {rows} rows"
                yield bad_input(shown(path), found, _REMEDY)


def _rows(encoder: Part) -> tuple[int, str]:
    """How many tokens a text encoder knows, and the file that says so; of pickles its config."""
    for name, tensor in encoder.tensors.items():
        if name.endswith(_EMBEDDING) and tensor.shape:
            return tensor.shape[0], f"{encoder.folder.name}/{tensor.file.name}"
    return _of_clip(encoder.config, "vocab_size"), f"{encoder.folder.name}/config.json"


def _of_fast_tokenizer(content: Mapping[str, Any]) -> dict[str, Any]:
    """The ids in a tokenizer.json: of its model, and of the tokens that were added."""
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    entries = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    return {
        **(vocabulary if isinstance(vocabulary, dict) else {}),
        **{str(entry.get("content")): entry.get("id") for entry in entries},
    }


_Ids = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # the content of a file → token → id
_ADDED = "added_tokens.json"
_VOCABULARIES: Mapping[str, _Ids] = {
    "vocab.json": dict,
    "tokenizer.json": _of_fast_tokenizer,
    _ADDED: dict,
}


def setting_problems(spec: RunSpec, model: PipelineFolder) -> Iterator[Problem]:
    """Settings that do not fit this model."""
    yield from trainable.lora_problems(spec, model)
    if not model.single and spec.prediction_type not in ("auto", model.prediction_type):
        yield bad_setting(
            "prediction_type",
            f"{spec.prediction_type}, with a model folder whose scheduler says {model.prediction_type}",
            "Leave it at auto; if the folder is wrong, fix its scheduler/scheduler_config.json.",
        )
    if not model.single and spec.single_file_config:
        found = f"{spec.single_file_config}, with a model that is a folder"
        yield bad_setting("single_file_config", found, "Unset it: the folder has its own configurations.")
    if spec.rescale_betas_zero_snr and model.prediction_type != "v_prediction":
        yield bad_setting(
            "rescale_betas_zero_snr",
            f"on, with a model that predicts {model.prediction_type}",
            "A model that predicts the noise learns nothing where only noise is left: "
            "leave it off, or use a v-prediction model.",
        )
    if spec.snr_gamma is not None and model.prediction_type not in ("epsilon", "v_prediction"):
        yield bad_setting(
            "snr_gamma",
            f"{spec.snr_gamma}, with a model that predicts {model.prediction_type}",
            "Min-SNR weights exist for models that predict epsilon or v_prediction: leave it empty.",
        )


def low_resolution(model: PipelineFolder, resolution: int) -> list[str]:
    """A warning if a model is trained on smaller images than it was made for."""
    native = model.native_resolution
    if native is None or resolution >= native:
        return []
    return [
        f"resolution: {resolution}, and this {model.prediction_type} model was made for {native} pixels, which it "
        f"forgets to generate: use resolution={native}, or a model made for {resolution}"
    ]
