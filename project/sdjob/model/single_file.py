"""A model as one file, in the layout of the original Stable Diffusion: which kind it is, and where its parts lie.

From the file's header only. A fine-tune of another architecture comes with a blueprint of its own (single_file_config).
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdjob.files import few, shown, unreadable
from sdjob.model import key_names, kinds, shapes
from sdjob.model.architectures import STABLE_DIFFUSION_XL
from sdjob.model.archive import Archive, Stored, open_archive
from sdjob.model.key_names import Place
from sdjob.model.kinds import Blueprint, Kind
from sdjob.model.shapes import Expected
from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError, Problem, bad_input, bad_setting

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
AUTO = "auto"
_SAMPLES, _SAMPLE_BYTES = 128, 4096
_TAKE = "take the whole checkpoint of Stable Diffusion 1.x, 2.x or XL base: U-Net, VAE and text encoder in one file"
_WHOLE = "download or copy the file again; a model with other layers needs single_file_config"
_FIRST = f"{key_names.UNET}input_blocks.0.0.weight"
_CONTEXT = re.compile(
    re.escape(key_names.UNET) + r"input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight"
)
_LABEL = f"{key_names.UNET}label_emb.0.0.weight"  # what is told of an image besides the text
_CHANNELS = {9: "an inpainting model", 8: "a model that edits images", 5: "a depth model", 7: "an upscaler"}
_SHAPES = {
    "unet": shapes.unet,
    "vae": shapes.vae,
    "text_encoder": shapes.text_encoder,
    "text_encoder_2": shapes.text_encoder_2,
}
_NAMES = {
    "unet": "U-Net",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}
_FOREIGN = (  # what else is shared as a single file, by a word in the names of its tensors
    (
        ("lora_up.", "lora_A.", "lora_B.", ".lokr_", ".hada_"),
        "is a LoRA, not a model",
        "mount its base model",
    ),
    (("double_blocks.",), "is a model of the FLUX kind", _TAKE),
    (("joint_blocks.",), "is a model of Stable Diffusion 3", _TAKE),
    (("control_model.", "controlnet_", "input_hint_block."), "is a ControlNet", _TAKE),
    (("emb_params", "string_to_param", "clip_l", "clip_g"), "is a textual inversion, not a model", _TAKE),
    (("down_blocks.0.resnets.0.time_emb_proj.",), "holds only a U-Net, in the layout of diffusers", _TAKE),
    (("first_stage_model.", "decoder.mid", "encoder.mid"), "holds only a VAE", _TAKE),
    (("cond_stage_model.", "conditioner.", "text_model."), "holds only a text encoder", _TAKE),
)
_NOISE_OF_EDM = ("edm_mean", "edm_vpred.sigma_max")
_SAID = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


@dataclass(frozen=True)
class Piece:
    """A tensor of a part, with the shape that it has there, and its bytes in the file."""

    stored: Stored
    transposed: bool = False  # so its rows are the columns in the file


@dataclass(frozen=True)
class SingleFile:
    """A file and the pipeline that is in it."""

    path: Path
    blueprint: Blueprint
    prediction_type: str
    weights: Mapping[str, Mapping[str, Piece]] = field(repr=False)  # part → tensor by its name of today
    notes: tuple[str, ...] = ()


def look(path: Path, blueprint: Blueprint | None, prediction_type: str, *, allow_pickle: bool) -> SingleFile:
    """The pipeline in a file, proven whole. Raises JobError with everything that is wrong with it.

    `blueprint`: that of another architecture, None: one of the known kinds. `prediction_type`: "auto", or what the
    model predicts where the file does not say it, or not rightly.
    """
    archive = open_archive(path, allow_pickle=allow_pickle)
    if problem := _refused(archive):
        raise JobError(problem)
    if blueprint is None:
        blueprint = _recognised(archive, prediction_type)
    elif prediction_type != AUTO:
        blueprint = kinds.predicting(blueprint, prediction_type)
    weights, problems = _weights(archive, blueprint)
    if problems:
        raise JobError(problems)
    said = str(blueprint.configs["scheduler"].get("prediction_type", "epsilon"))
    return SingleFile(path, blueprint, said, weights, tuple(_notes(archive)))


def refusal(path: Path, *, allow_pickle: bool) -> Problem | None:
    """Why a file is no model that can be trained: a LoRA, a VAE or the like. Raises JobError if it is broken."""
    return _refused(open_archive(path, allow_pickle=allow_pickle))


def converted_folder(single: SingleFile, cache_dir: str | None, output: Path) -> Path:
    """Where the folder lies that is made of a file: named by its content, so that it is found again.

    Of the content the header and samples from beginning to end: another training moves them all. Raises JobError.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, content in sorted(single.blueprint.files.items()):
        digest.update(f"{name}\0{content}\0".encode())
    try:
        size = single.path.stat().st_size
        digest.update(f"{size}".encode())
        with single.path.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(size * number // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise JobError(unreadable(single.path, error)) from error
    root = Path(cache_dir).expanduser() if cache_dir else OutputLayout(output).cache
    return root / f"model-{digest.hexdigest()}"


# --- what it is --------------------------------------------------------------------------------------


def _refused(archive: Archive) -> Problem | None:
    """Why it can be no model of this architecture, whatever its sizes."""
    names, subject = archive.tensors.keys(), shown(archive.path)
    first = archive.tensors.get(_FIRST)
    if first is None:
        for words, found, remedy in _FOREIGN:
            if any(word in name for name in names for word in words):
                return bad_input(subject, found, remedy)
        found = f"is no model of Stable Diffusion: it holds {len(names)} tensors" + (
            f", such as {few(sorted(names), 2)}" if names else ""
        )
        return bad_input(subject, found, _TAKE)
    channels = first.shape[1] if len(first.shape) > 1 else 0
    if channels != 4:
        what = f" ({_CHANNELS[channels]})" if channels in _CHANNELS else ""
        found = f"has a U-Net that takes {channels} channels instead of 4{what}, which this version does not train"
        return bad_input(subject, found, _TAKE)
    if any(name in names for name in _NOISE_OF_EDM):
        found = "was made for a noise schedule of another kind (EDM), which this version does not train"
        return bad_input(subject, found, _TAKE)
    return None


def _recognised(archive: Archive, prediction_type: str) -> Blueprint:
    """The blueprint of a known kind. Raises JobError."""
    kind = _kind(archive)
    zero_snr = key_names.ZERO_SNR in archive.tensors
    if prediction_type == AUTO:
        prediction_type = said_prediction(archive) or ("epsilon" if kind.silent_means_epsilon else "")
    if not prediction_type:
        found = (
            f"auto, and {shown(archive.path)} does not say what it predicts, as no file of {kind.name} must"
        )
        remedy = (
            "Set prediction_type=v_prediction for a model made for 768 pixels, "
            "or prediction_type=epsilon for one made for 512 (the base)."
        )
        raise JobError(bad_setting("prediction_type", found, remedy))
    return kinds.blueprint(kind, prediction_type, zero_snr=zero_snr and prediction_type == "v_prediction")


def said_prediction(archive: Archive) -> str | None:
    """What the file says that its U-Net predicts: by a tensor's presence, or by its metadata (modelspec)."""
    if key_names.V_PREDICTION in archive.tensors:
        return "v_prediction"
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):  # the latter is ComfyUI's
        said = str(archive.metadata.get(key, "")).lower().replace("-", "_")
        if said in _SAID:
            return _SAID[said]
    architecture = str(archive.metadata.get("modelspec.architecture", ""))
    return {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"}.get(
        architecture
    )


def _kind(archive: Archive) -> Kind:
    """The known kind whose U-Net this is. Raises JobError."""
    contexts = {
        tensor.shape[1]
        for name, tensor in archive.tensors.items()
        if _CONTEXT.fullmatch(name) and len(tensor.shape) == 2
    }
    is_told_more = _LABEL in archive.tensors
    for kind in kinds.KINDS:
        if contexts == {kind.context} and is_told_more == (kind is kinds.SD_XL):
            return kind
    if contexts == {1280} and is_told_more:
        found = "is a refiner of Stable Diffusion XL, which this version does not train"
        raise JobError(bad_input(shown(archive.path), found, _TAKE))
    known = ", ".join(f"{kind.context} ({kind.name})" for kind in kinds.KINDS)
    width = f"of the width {few(map(str, sorted(contexts)))}" if contexts else "of no width"
    found = f"has a U-Net that attends to texts {width}; known are {known}"
    if contexts <= {kind.context for kind in kinds.KINDS} and is_told_more:
        found = "has a U-Net that is told more than a text (unCLIP or the like), which this version does not train"
    remedy = "for another architecture, set single_file_config to a diffusers folder with its configurations"
    raise JobError(bad_input(shown(archive.path), found, remedy))


def _notes(archive: Archive) -> Iterable[str]:
    if average := [name for name in archive.tensors if name.startswith(key_names.AVERAGE)]:
        yield (
            f"{shown(archive.path)}: {len(average):,} tensors of an average of the weights ({key_names.AVERAGE}…) "
            "are ignored: the other ones are trained on"
        )


# --- where its parts lie -----------------------------------------------------------------------------


def _weights(archive: Archive, blueprint: Blueprint) -> tuple[dict[str, dict[str, Piece]], list[Problem]]:
    """Every tensor of every part, found in the file."""
    tensors = _with_prefix(archive.tensors)
    found: dict[str, dict[str, Piece]] = {}
    absent: list[str] = []
    problems: list[Problem] = []
    for part, shapes_of in _SHAPES.items():
        if part not in blueprint.configs:
            continue
        config = blueprint.configs[part]
        expected = shapes_of(config)
        if expected is None:
            known = "asks for layers that no single file is known to have"
            problems.append(
                bad_input(shown(blueprint.folders[part]), known, "use the model as a diffusers folder")
            )
            continue
        xl = blueprint.class_name == STABLE_DIFFUSION_XL.class_name
        places = key_names.places(part, config, expected, xl=xl)
        there = {name: place for name, place in places.items() if place.name in tensors}
        if not there:
            absent.append(part)
            continue
        title = f"the {_NAMES[part]} of {blueprint.kind}"
        if missing := sorted({place.name for place in places.values()} - tensors.keys()):
            lacks = f"lacks {len(missing)} tensors of {title}, such as {few(missing, 3)}"
            problems.append(bad_input(shown(archive.path), lacks, _WHOLE))
        pieces = {name: _piece(tensors[place.name], place, expected[name]) for name, place in there.items()}
        problems += _misfits(archive.path, title, places, expected, pieces, tensors)
        found[part] = {name: piece for name, piece in pieces.items() if piece}
    if absent:
        parts = " and no ".join(_NAMES[part] for part in absent)
        problems.append(bad_input(shown(archive.path), f"holds no {parts}", _TAKE))
    return found, problems


def _with_prefix(tensors: Mapping[str, Stored]) -> Mapping[str, Stored]:
    """Some programs leave `text_model.` out of the names of CLIP."""
    bare = key_names.CLIP.removesuffix("text_model.")
    return {
        key_names.CLIP + name.removeprefix(bare)
        if name.startswith(bare) and not name.startswith(key_names.CLIP)
        else name: tensor
        for name, tensor in tensors.items()
    }


def _piece(stored: Stored, place: Place, expected: Expected) -> Piece | None:
    """The bytes of a tensor; None: it has another shape."""
    whole = expected.shape
    if place.third is not None:
        whole = (3 * whole[0], *whole[1:])
    if place.transposed:
        whole = whole[::-1]
    if _without_ones(stored.shape) != _without_ones(whole):
        return None
    parts = 1 if place.third is None else 3
    size = stored.size // parts
    begin = stored.begin + size * (place.third or 0)
    return Piece(Stored(stored.dtype, expected.shape, begin, size), place.transposed)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A convolution of 1 × 1 and a linear layer have the same bytes."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _misfits(
    path: Path,
    title: str,
    places: Mapping[str, Place],
    expected: Mapping[str, Expected],
    pieces: Mapping[str, Piece | None],
    tensors: Mapping[str, Stored],
) -> list[Problem]:
    """One problem for each number of the architecture that is another one."""
    wrong: dict[str, list[str]] = defaultdict(list)
    for name, piece in pieces.items():
        if piece is None:
            wrong[expected[name].key].append(name)
    problems = []
    for key, names in wrong.items():
        first = places[names[0]]
        have, want = list(tensors[first.name].shape), list(expected[names[0]].shape)
        part = (
            f"[{3 * want[0]}, …]"
            if first.third is not None
            else str(want[::-1] if first.transposed else want)
        )
        more = f" ({len(names) - 1} more tensors differ)" if len(names) > 1 else ""
        found = f"{first.name} is {have}; {title} has {part}, by {key}{more}"
        problems.append(bad_input(shown(path), found, _WHOLE))
    return problems
