"""Recognising a diffusers pipeline on disk: all parts there, all weights whole, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .folders import (
    Listing,
    below,
    few,
    is_lfs_pointer,
    lfs_problem,
    list_folder,
    open_listing,
    unreadable,
)
from .problem import JobError, Problem, bad_input
from .weights import read_header, read_index

SUPPORTED = "StableDiffusionPipeline"
PREDICTION_TYPES = ("epsilon", "v_prediction")
_WHOLE = "copy the whole pipeline folder again (save_pretrained writes all of it)"
_TRAINABLE = f"use a {SUPPORTED} of Stable Diffusion 1.x or 2.x, in the layout of diffusers"


@dataclass(frozen=True)
class PartKind:
    """What a part of the pipeline must be."""

    classes: tuple[str, ...]  # empty: any
    config: str | None = None
    weights: str | None = None  # stem of the safetensors files
    pickle: str | None = None  # stem of the pickles


_DIFFUSERS = "diffusion_pytorch_model"
PARTS: Mapping[str, PartKind] = {
    "unet": PartKind(("UNet2DConditionModel",), "config.json", _DIFFUSERS, _DIFFUSERS),
    "vae": PartKind(("AutoencoderKL",), "config.json", _DIFFUSERS, _DIFFUSERS),
    "text_encoder": PartKind(("CLIPTextModel",), "config.json", "model", "pytorch_model"),
    "tokenizer": PartKind(("CLIPTokenizer", "CLIPTokenizerFast")),
    "scheduler": PartKind((), "scheduler_config.json"),
}


@dataclass(frozen=True)
class Part:
    """One part of a pipeline. Of pickled weights the parameters are an estimate from the bytes."""

    folder: Path
    class_name: str
    weights: tuple[Path, ...] = ()
    num_bytes: int = 0
    num_parameters: int = 0
    variant: str | None = None  # "fp16" for diffusion_pytorch_model.fp16.safetensors, the only file there
    pickled: bool = False


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline that can be trained, as far as can be told without loading it."""

    path: Path
    class_name: str
    prediction_type: str
    parts: Mapping[str, Part]


def find_pipeline(root: Path, name: str | None, *, allow_pickle: bool) -> PipelineFolder:
    """The pipeline under a mount, proven complete. Raises JobError with everything that is wrong with it."""
    folder = _locate(below(root, name, "model_name"))
    index = _read_json(folder / "model_index.json")
    class_name = str(index.get("_class_name"))
    if class_name != SUPPORTED:
        raise JobError(
            bad_input(str(folder), f"is a {class_name}, which this version does not train", _TRAINABLE)
        )
    parts: dict[str, Part] = {}
    problems: list[Problem] = []
    for part, kind in PARTS.items():
        try:
            parts[part] = _read_part(folder / part, _class_of(index, part), kind, allow_pickle)
        except JobError as error:
            problems += error.problems
    prediction_type = "epsilon"
    if "scheduler" in parts:
        config = _read_json(folder / "scheduler" / "scheduler_config.json")
        prediction_type = str(config.get("prediction_type", prediction_type))
        if prediction_type not in PREDICTION_TYPES:
            found = f"prediction_type is {prediction_type!r}, which this version does not train"
            problems.append(bad_input(str(folder / "scheduler"), found, f"use {few(PREDICTION_TYPES)}"))
    if problems:
        raise JobError(problems)
    return PipelineFolder(folder, class_name, prediction_type, parts)


def _locate(place: Path) -> Path:
    """The one pipeline folder at this place or one level below it."""
    if place.is_file():
        raise JobError(_single_file(place))
    top = open_listing(place)
    if _looks_like_pipeline(top):
        return place
    inner = [listing for name in top.folders if (listing := _try_listing(place / name))]
    found = [listing.path for listing in inner if _looks_like_pipeline(listing)]
    if len(found) == 1:
        return found[0]
    if found:
        raise JobError(
            bad_input(
                str(place),
                f"holds {len(found)} pipelines: {few(path.name for path in found)}",
                f"set model_name to one of them, for example model_name={found[0].name}",
            )
        )
    for listing in (top, *inner):
        if single := [n for n in listing.files if n.endswith((".safetensors", ".ckpt", ".pt", ".bin"))]:
            raise JobError(_single_file(listing.path / single[0]))
    raise JobError(
        bad_input(
            str(place),
            f"no diffusers pipeline (model_index.json) here or one level below; found {top.summary()}",
            "mount the folder of a pipeline, or set model_name to a folder below the mount",
        )
    )


def _looks_like_pipeline(listing: Listing) -> bool:
    """Also where model_index.json itself is missing, so that the message can say just that."""
    return "model_index.json" in listing.files or len(PARTS.keys() & set(listing.folders)) >= 2


def _try_listing(path: Path) -> Listing | None:
    """Neighbours of the pipeline that we may not read are none of our business."""
    try:
        return list_folder(path)
    except OSError:
        return None


def _single_file(path: Path) -> Problem:
    target = path.with_suffix("")
    return bad_input(
        str(path),
        "is a single-file checkpoint, which is not supported yet",
        f'convert it: python -c "from diffusers import {SUPPORTED} as P; '
        f"P.from_single_file('{path}').save_pretrained('{target.name}')\", then mount that folder",
    )


def _class_of(index: Mapping[str, Any], part: str) -> str:
    """The class that model_index.json gives for a part, "" where it gives none."""
    entry = index.get(part)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] else ""


def _read_part(folder: Path, class_name: str, kind: PartKind, allow_pickle: bool) -> Part:
    """One part, proven complete. Raises JobError."""
    try:
        names = list_folder(folder).files
    except FileNotFoundError as error:
        raise JobError(bad_input(str(folder), "is missing", _WHOLE)) from error
    except OSError as error:
        raise JobError(unreadable(folder, error)) from error
    if not class_name:
        found = f"does not name the class of {folder.name}"
        raise JobError(bad_input(str(folder.parent / "model_index.json"), found, _WHOLE))
    if kind.classes and class_name not in kind.classes:
        found = f"is a {class_name}, which this version does not train"
        raise JobError(bad_input(str(folder), found, _TRAINABLE))
    if kind.config:
        _check_config(folder, _read_json(folder / kind.config), class_name)
    else:
        _check_tokenizer(folder, names)
    if not kind.weights or not kind.pickle:
        return Part(folder, class_name)
    return _read_weights(folder, class_name, names, (kind.weights, kind.pickle), allow_pickle)


def _check_config(folder: Path, config: Mapping[str, Any], class_name: str) -> None:
    """Inpainting, depth and editing models differ in one number only: the channels that the U-Net takes."""
    channels = config.get("in_channels", 4)
    if class_name == "UNet2DConditionModel" and channels != 4:
        what = " (an inpainting model)" if channels == 9 else ""
        found = f"takes {channels} channels instead of 4{what}, which this version does not train"
        raise JobError(bad_input(str(folder), found, _TRAINABLE))


def _check_tokenizer(folder: Path, names: Sequence[str]) -> None:
    """Either tokenizer.json, or vocab.json with merges.txt."""
    if "tokenizer.json" in names:
        _read_json(folder / "tokenizer.json")
        return
    missing = [name for name in ("vocab.json", "merges.txt") if name not in names]
    if missing:
        raise JobError(bad_input(str(folder), f"{few(missing)} is missing (and no tokenizer.json)", _WHOLE))
    _read_json(folder / "vocab.json")
    _read_bytes(folder / "merges.txt")


def _read_weights(
    folder: Path, class_name: str, names: Sequence[str], stems: tuple[str, str], allow_pickle: bool
) -> Part:
    """The weights of a part: safetensors if there are any, else pickles where these are allowed."""
    safe, pickled = _choices(names, stems[0], "safetensors"), _choices(names, stems[1], "bin")
    choices = safe or pickled
    if not choices:
        wanted = f"{stems[0]}.safetensors"
        found = f"no weights ({wanted}); found {few(names) or 'nothing'}"
        raise JobError(bad_input(str(folder), found, _WHOLE))
    if None not in choices and len(choices) > 1:
        found = f"weights only as variants: {few(map(str, choices))}"
        raise JobError(bad_input(str(folder), found, "keep one of them in this folder"))
    variant = None if None in choices else next(iter(choices))
    file = folder / choices[variant]
    if not safe:
        return _pickled_part(folder, class_name, file, variant, allow_pickle)
    files, num_bytes, num_parameters = _read_safetensors(file)
    return Part(folder, class_name, files, num_bytes, num_parameters, variant)


def _choices(names: Sequence[str], stem: str, suffix: str) -> dict[str | None, str]:
    """Variant → file: model.safetensors, model.fp16.safetensors, and the indices of sharded weights."""
    found: dict[str | None, str] = {}
    for name in names:
        for ending in (f".{suffix}.index.json", f".{suffix}"):
            if name == stem + ending:
                found[None] = name
            elif name.startswith(f"{stem}.") and name.endswith(ending):
                variant = name[len(stem) + 1 : -len(ending)]
                if "." not in variant:
                    found[variant] = name
        indexed = name.removeprefix(f"{stem}.{suffix}.index.").removesuffix(".json")
        if name == f"{stem}.{suffix}.index.{indexed}.json":
            found[indexed] = name
    return found


def _read_safetensors(file: Path) -> tuple[tuple[Path, ...], int, int]:
    """(files, bytes, parameters) of one safetensors file, or of all shards of an index. Raises JobError."""
    if not file.name.endswith(".json"):
        weights = read_header(file)
        return (file,), weights.num_bytes, weights.num_parameters
    problems: list[Problem] = []
    num_bytes = num_parameters = 0
    shards = read_index(file)
    for shard, tensors in shards.items():
        try:
            _read_bytes(file.with_name(shard), 1)
            weights = read_header(file.with_name(shard))
        except JobError as error:
            problems += error.problems
            continue
        num_bytes += weights.num_bytes
        num_parameters += weights.num_parameters
        if absent := sorted(tensors - weights.names):
            found = f"lacks {few(absent, 3)}, which {file.name} says it holds"
            problems.append(bad_input(str(file.with_name(shard)), found, _WHOLE))
    if problems:
        raise JobError(problems)
    return tuple(file.with_name(shard) for shard in shards), num_bytes, num_parameters


def _pickled_part(folder: Path, class_name: str, file: Path, variant: str | None, allow_pickle: bool) -> Part:
    """Weights that only a pickle holds: nothing can be said of them but that they are there."""
    if not allow_pickle:
        raise JobError(
            bad_input(
                str(file),
                "the weights exist only as a pickle, which can run code when it is loaded",
                "use a pipeline with .safetensors files, or trust this one with allow_pickle=1",
            )
        )
    files = tuple(file.with_name(s) for s in read_index(file)) if file.suffix == ".json" else (file,)
    for path in files:
        _read_bytes(path, 1)
    num_bytes = sum(path.stat().st_size for path in files)
    width = 2 if variant == "fp16" else 4
    return Part(folder, class_name, files, num_bytes, num_bytes // width, variant, pickled=True)


def _read_bytes(path: Path, count: int = -1) -> bytes:
    """A file that must be there, readable, not empty, and no LFS pointer. Raises JobError."""
    try:
        if is_lfs_pointer(path):
            raise JobError(lfs_problem(path))
        with path.open("rb") as file:
            content = file.read(count)
    except FileNotFoundError as error:
        raise JobError(bad_input(str(path), "is missing", _WHOLE)) from error
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    if not content:
        raise JobError(bad_input(str(path), "is empty (0 bytes)", _WHOLE))
    return content


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises JobError."""
    try:
        value = json.loads(_read_bytes(path))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise JobError(bad_input(str(path), f"is not readable JSON ({error})", _WHOLE)) from error
    return value
