"""Recognising a pipeline on disk: all parts there, all weights whole, before anything is loaded.

A folder of diffusers, or one file in the original layout (single_file.py), which looks like a folder from here on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdjob.files import (
    Listing,
    below,
    few,
    list_folder,
    open_listing,
    read_file,
    read_json,
    shown,
    unreadable,
)
from sdjob.model import architectures, single_file
from sdjob.model.architectures import ARCHITECTURES, ArchitectureFacts, Component
from sdjob.model.kinds import Blueprint
from sdjob.model.single_file import AUTO, SingleFile
from sdjob.model.weights import Tensor, find_weights
from sdjob.problems import JobError, Problem, bad_input

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")  # of DDPMScheduler
_MAX_TIMESTEPS = 100_000
_WHOLE = "copy the whole pipeline folder again (save_pretrained writes all of it)"
_TRAINABLE = f"use {architectures.titles()}"
_MAX_FILES = 50  # single files in a folder that are looked into
_MAX_REFUSALS = 6  # of which so many are spoken of


@dataclass(frozen=True)
class Part:
    """One part of a pipeline. Of pickled weights the parameters are an estimate from the bytes."""

    folder: Path
    class_name: str
    weights: tuple[Path, ...] = ()
    num_bytes: int = 0  # of tensors
    num_parameters: int = 0
    variant: str | None = None  # "fp16" for model.fp16.safetensors, where it is the only file
    pickled: bool = False
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)  # none of pickled weights


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline that can be trained, as far as can be told without loading it."""

    path: Path  # of the folder, or of the single file
    class_name: str
    prediction_type: str
    parts: Mapping[str, Part]
    single: SingleFile | None = None

    @property
    def architecture(self) -> ArchitectureFacts:
        return ARCHITECTURES[self.class_name]

    @property
    def denoiser(self) -> Part:
        return self.parts[self.architecture.denoiser]


def find_pipeline(
    root: Path,
    name: str | None,
    *,
    allow_pickle: bool,
    prediction_type: str = AUTO,
    single_file_config: str | None = None,
) -> PipelineFolder:
    """The pipeline under a mount, proven complete. Raises JobError with everything that is wrong with it.

    `prediction_type`, `single_file_config`: what a single file does not say (single_file.look).
    """
    place = _locate(
        below(root, name, "model_name", _looks_like_pipeline, single_file.SUFFIXES), allow_pickle=allow_pickle
    )
    if not place.is_file():
        return _in_folder(place, allow_pickle=allow_pickle)
    blueprint = _blueprint_in(Path(single_file_config)) if single_file_config else None
    single = single_file.look(place, blueprint, prediction_type, allow_pickle=allow_pickle)
    return _of_single_file(single)


def _in_folder(folder: Path, *, allow_pickle: bool) -> PipelineFolder:
    class_name, classes = _index_of(folder)
    parts: dict[str, Part] = {}
    problems: list[Problem] = []
    for part, kind in ARCHITECTURES[class_name].components.items():
        try:
            parts[part] = _read_part(folder / part, classes.get(part, ""), kind, allow_pickle)
        except JobError as error:
            problems += error.problems
    prediction_types = ARCHITECTURES[class_name].prediction_types
    prediction_type = prediction_types[0]
    if "scheduler" in parts:
        problems += _schedule_problems(parts["scheduler"], prediction_types)
        prediction_type = str(parts["scheduler"].config.get("prediction_type", prediction_type))
    if problems:
        raise JobError(problems)
    return PipelineFolder(folder, class_name, prediction_type, parts)


def _index_of(folder: Path) -> tuple[str, dict[str, str]]:
    """The class of the pipeline, and of each part. Raises JobError."""
    index = read_json(folder / "model_index.json")
    class_name = str(index.get("_class_name", "pipeline of no named class"))
    if class_name not in ARCHITECTURES:
        raise JobError(
            bad_input(shown(folder), f"is a {class_name}, which this version does not train", _TRAINABLE)
        )
    return class_name, {part: _class_of(index, part) for part in ARCHITECTURES[class_name].components}


# --- single files ------------------------------------------------------------------------------------


def _of_single_file(single: SingleFile) -> PipelineFolder:
    """The pipeline as the folder will be that is made of the file."""
    plan = single.blueprint
    parts = {}
    for name in ARCHITECTURES[plan.class_name].components:
        pieces = single.weights.get(name, {})
        parts[name] = Part(
            plan.folders[name],
            plan.classes[name],
            (single.path,) if pieces else (),
            sum(piece.stored.size for piece in pieces.values()),
            sum(piece.stored.count for piece in pieces.values()),
            config=plan.configs[name],
            tensors={key: Tensor(piece.stored.shape, single.path) for key, piece in pieces.items()},
        )
    prediction_types = ARCHITECTURES[plan.class_name].prediction_types
    if problems := _schedule_problems(parts["scheduler"], prediction_types):
        raise JobError(problems)
    return PipelineFolder(single.path, plan.class_name, single.prediction_type, parts, single)


def _blueprint_in(folder: Path) -> Blueprint:
    """All but the weights of a pipeline folder, for the weights of a single file. Raises JobError."""
    class_name, classes = _index_of(folder)
    configs: dict[str, Mapping[str, Any]] = {}
    files: dict[str, str] = {}
    problems: list[Problem] = []
    for part, kind in ARCHITECTURES[class_name].components.items():
        try:
            listed, configs[part] = _read_config(folder / part, classes[part], kind)
            small = (name for name in listed if name.endswith((".json", ".txt")) and ".index." not in name)
            files |= {f"{part}/{name}": read_file(folder / part / name).decode() for name in small}
        except (JobError, UnicodeDecodeError) as error:
            text = bad_input(shown(folder / part), "holds a text that is not UTF-8", _WHOLE)
            problems += error.problems if isinstance(error, JobError) else [text]
    if problems:
        raise JobError(problems)
    index = {
        key: entry if key in configs or not isinstance(entry, list) else (None, None)
        for key, entry in read_json(folder / "model_index.json").items()
    }
    files["model_index.json"] = json.dumps(index, indent=2) + "\n"
    folders = {part: folder / part for part in configs}
    return Blueprint(f"a model like {shown(folder)}", class_name, classes, configs, folders, files)


# --- folders -----------------------------------------------------------------------------------------


def _locate(place: Path, *, allow_pickle: bool) -> Path:
    """The one pipeline folder at this place or one level below it; where there is none, the one single file."""
    if place.is_file():
        return place
    top = open_listing(place)
    if _looks_like_pipeline(top):
        return place
    inner: list[Listing] = []
    closed: list[Problem] = []
    for name in top.folders:
        try:
            inner.append(list_folder(place / name))
        except OSError as error:
            closed.append(unreadable(place / name, error))
    found = [listing.path for listing in inner if _looks_like_pipeline(listing)]
    if len(found) == 1:
        return found[0]
    if found:
        raise JobError(_ambiguous(place, found, "pipelines"))
    for listings in ((top,), inner):
        if files := [each.path / name for each in listings for name in _single_files(each)]:
            return _one_of(place, files, allow_pickle=allow_pickle)
    found_here = (
        f"no model (a folder with model_index.json, or one .safetensors file) here or one level below; "
        f"found {top.summary()}"
    )
    remedy = "mount the folder of a pipeline, or set model_name to a folder or file below the mount"
    raise JobError([*closed, bad_input(shown(place), found_here, remedy)])


def _single_files(listing: Listing) -> list[str]:
    """What may be models; pickles only where there is nothing better."""
    safe = [name for name in listing.files if name.endswith(".safetensors")]
    return safe or [name for name in listing.files if name.endswith(single_file.SUFFIXES)]


def _one_of(place: Path, files: Sequence[Path], *, allow_pickle: bool) -> Path:
    """The one model among single files; VAEs, LoRAs and the like often lie beside it. Raises JobError."""
    if len(files) == 1:
        return files[0]
    models: list[Path] = []
    others: list[Problem] = []
    broken: list[Problem] = []
    for path in files[:_MAX_FILES]:
        try:
            refusal = single_file.refusal(path, allow_pickle=allow_pickle)
            others += [refusal] if refusal else []
            models += [] if refusal else [path]
        except JobError as error:
            broken += error.problems
    if len(models) == 1 and not broken:
        return models[0]
    if models:
        raise JobError([_ambiguous(place, models, "models"), *broken])
    raise JobError((broken + others)[:_MAX_REFUSALS])


def _ambiguous(place: Path, found: Sequence[Path], what: str) -> Problem:
    names = [path.relative_to(place).as_posix() for path in found]
    return bad_input(
        shown(place),
        f"holds {len(found)} {what}: {few(names)}",
        f"set model_name to one of them, for example model_name={shown(names[0])}",
    )


def _looks_like_pipeline(listing: Listing) -> bool:
    """Also where model_index.json itself is missing, so that the message can say just that."""
    return (
        "model_index.json" in listing.files
        or len(architectures.component_names() & set(listing.folders)) >= 2
    )


def _class_of(index: Mapping[str, Any], part: str) -> str:
    """The class that model_index.json gives for a part, "" where it gives none."""
    entry = index.get(part)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] else ""


def _read_part(folder: Path, class_name: str, kind: Component, allow_pickle: bool) -> Part:
    """One part, proven complete. Raises JobError."""
    _, config = _read_config(folder, class_name, kind)
    if not kind.weights:
        return Part(folder, class_name, config=config)
    weights = find_weights(folder, *kind.weights, allow_pickle=allow_pickle)
    return Part(
        folder,
        class_name,
        weights.files,
        weights.num_bytes,
        weights.num_parameters,
        weights.variant,
        weights.pickled,
        config,
        weights.tensors,
    )


def _read_config(folder: Path, class_name: str, kind: Component) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """The files of a part, and its configuration, with which it can be trained. Raises JobError."""
    try:
        names = list_folder(folder).files
    except FileNotFoundError as error:
        raise JobError(bad_input(shown(folder), "is missing", _WHOLE)) from error
    except OSError as error:
        raise JobError(unreadable(folder, error)) from error
    if not class_name:
        found = f"does not name the class of {folder.name}"
        raise JobError(bad_input(shown(folder.parent / "model_index.json"), found, _WHOLE))
    if kind.classes and class_name not in kind.classes:
        found = f"is a {class_name}, which this version does not train"
        raise JobError(bad_input(shown(folder), found, _TRAINABLE))
    if not kind.config:
        _check_tokenizer(folder, names)
        return names, {}
    config = read_json(folder / kind.config)
    _check_channels(folder, config, kind)
    return names, config


def _check_channels(folder: Path, config: Mapping[str, Any], kind: Component) -> None:
    """Inpainting, depth and editing models differ in one number only: the channels that the denoiser takes."""
    channels = config.get("in_channels", kind.in_channels)
    if kind.in_channels is not None and channels != kind.in_channels:
        what = " (an inpainting model)" if channels == 9 else ""
        found = f"takes {channels} channels instead of {kind.in_channels}{what}, which this version does not train"
        raise JobError(bad_input(shown(folder), found, _TRAINABLE))


def _schedule_problems(scheduler: Part, prediction_types: Sequence[str]) -> list[Problem]:
    """What the noise schedule must be for a loss to be computed with it."""
    config, subject = scheduler.config, shown(scheduler.folder)
    found: list[Problem] = []
    prediction_type = str(config.get("prediction_type", prediction_types[0]))
    if prediction_type not in prediction_types:
        what = f"prediction_type is {prediction_type!r}, which this version does not train"
        found.append(bad_input(subject, what, f"use {few(prediction_types)}"))
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 < steps <= _MAX_TIMESTEPS:
        what = f"num_train_timesteps is {steps!r}, not a number from 2 to {_MAX_TIMESTEPS:,}"
        found.append(bad_input(subject, what, _WHOLE))
    curve = config.get("beta_schedule", "linear")
    if curve not in BETA_SCHEDULES and config.get("trained_betas") is None:
        what = f"beta_schedule is {curve!r}, which is none of {few(BETA_SCHEDULES)}"
        found.append(bad_input(subject, what, _WHOLE))
    return found


def _check_tokenizer(folder: Path, names: Sequence[str]) -> None:
    """Either tokenizer.json, or vocab.json with merges.txt."""
    if "tokenizer.json" in names:
        read_json(folder / "tokenizer.json")
        return
    missing = [name for name in ("vocab.json", "merges.txt") if name not in names]
    if missing:
        raise JobError(bad_input(shown(folder), f"{few(missing)} is missing (and no tokenizer.json)", _WHOLE))
    read_json(folder / "vocab.json")
    read_file(folder / "merges.txt")
