"""Find a pipeline on disk, with all parts present and all weight files complete, before anything is loaded.

It is a diffusers folder, or one file in the original layout (single_file.py), which looks like a folder to all callers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdjob.files import list_folder, read_json, shown, unreadable
from sdjob.model import config_checks, key_names, locate, single_file
from sdjob.model.architectures import ARCHITECTURES, STABLE_DIFFUSION_XL, ArchitectureFacts, Component
from sdjob.model.config_checks import COPY_AGAIN, USE_BASE
from sdjob.model.single_file import AUTO, SingleFile
from sdjob.model.weights import Tensor, find_weights
from sdjob.problems import JobError, Problem, bad_input

_TITLES = {"vae": "VAE", "text_encoder": "text encoder", "text_encoder_2": "second text encoder"}


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
    """A pipeline that can be trained, as far as is known without loading it."""

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

    @property
    def latent_factor(self) -> int:
        """Pixels a side of a latent: the VAE halves the image between its blocks."""
        widths = self.parts["vae"].config.get("block_out_channels")
        return int(2 ** (len(widths) - 1)) if isinstance(widths, list) and widths else 1

    @property
    def native_resolution(self) -> int | None:
        """The side of the images that the denoiser was made for; None where its config does not say."""
        size = self.denoiser.config.get("sample_size")
        return size * self.latent_factor if isinstance(size, int) and size > 0 else None


def find_pipeline(
    root: Path,
    name: str | None,
    *,
    allow_pickle: bool,
    prediction_type: str = AUTO,
    single_file_config: str | None = None,
) -> PipelineFolder:
    """The complete pipeline under a mount. Raises JobError with everything that is wrong with it.

    `prediction_type`, `single_file_config`: what a single file does not state (single_file.read).
    """
    path = locate.model_path(root, name, allow_pickle=allow_pickle)
    if not path.is_file():
        return _in_folder(path, allow_pickle=allow_pickle)
    configs = Path(single_file_config) if single_file_config else None
    if configs:
        _index_of(configs)
    return _in_single_file(single_file.read(path, configs, prediction_type, allow_pickle=allow_pickle))


def _in_folder(folder: Path, *, allow_pickle: bool) -> PipelineFolder:
    class_name, classes = _index_of(folder)
    architecture = ARCHITECTURES[class_name]
    parts: dict[str, Part] = {}
    problems: list[Problem] = []
    for name, required in architecture.components.items():
        try:
            parts[name] = _read_part(folder / name, classes[name], required, allow_pickle)
        except JobError as error:
            problems += error.problems
    scheduler: Mapping[str, Any] = {}
    if "scheduler" in parts:
        scheduler = parts["scheduler"].config
        problems += config_checks.schedule_problems(
            folder / "scheduler", scheduler, architecture.prediction_types
        )
    if problems:
        raise JobError(problems)
    return PipelineFolder(folder, class_name, _prediction(architecture, scheduler), parts)


def _prediction(architecture: ArchitectureFacts, scheduler: Mapping[str, Any]) -> str:
    return str(scheduler.get("prediction_type", architecture.prediction_types[0]))


def _index_of(folder: Path) -> tuple[str, dict[str, str]]:
    """The class of the pipeline, and of each part. Raises JobError."""
    index = read_json(folder / "model_index.json")
    class_name = str(index.get("_class_name", "pipeline of no named class"))
    if class_name not in ARCHITECTURES:
        raise JobError(
            bad_input(shown(folder), f"is a {class_name}, which this version does not train", USE_BASE)
        )
    return class_name, {part: _class_of(index, part) for part in ARCHITECTURES[class_name].components}


def _in_single_file(single: SingleFile) -> PipelineFolder:
    """The pipeline as the folder will be that the worker makes of the file. Raises JobError."""
    class_name, classes = _index_of(single.configs)
    architecture = ARCHITECTURES[class_name]
    parts: dict[str, Part] = {}
    problems: list[Problem] = []
    for name, required in architecture.components.items():
        folder = single.configs / name
        try:
            files, config = _read_config(folder, classes[name], required)
            if not required.config and not single.is_published:
                config_checks.check_tokenizer(folder, files)
            config = {**config, **single.scheduler} if name == "scheduler" else config
            part = Part(folder, classes[name], config=config)
            parts[name] = _with_tensors(name, part, single, architecture) if required.weights else part
        except JobError as error:
            problems += error.problems
    if problems:
        raise JobError(problems)
    absent = [
        name for name, each in architecture.components.items() if each.weights and not parts[name].tensors
    ]
    if absent:
        titles = {**_TITLES, architecture.denoiser: architecture.denoiser_title}
        found = f"holds no {' and no '.join(titles.get(name, name) for name in absent)}"
        raise JobError(bad_input(shown(single.path), found, single_file.WHOLE_MODEL))
    scheduler = parts["scheduler"]
    types = architecture.prediction_types
    if problems := config_checks.schedule_problems(scheduler.folder, scheduler.config, types):
        raise JobError(problems)
    return PipelineFolder(single.path, class_name, _prediction(architecture, scheduler.config), parts, single)


def _with_tensors(name: str, part: Part, single: SingleFile, architecture: ArchitectureFacts) -> Part:
    """A part with its tensors among those of the file. Raises JobError."""
    xl = architecture is STABLE_DIFFUSION_XL
    try:
        tensors = key_names.diffusers_tensors(name, part.config, single.tensors, xl=xl)
    except (TypeError, AttributeError) as error:  # values of any type
        found = f"has a value of the wrong type ({error})"
        raise JobError(bad_input(shown(part.folder / "config.json"), found, COPY_AGAIN)) from error
    return replace(
        part,
        weights=(single.path,),
        num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
        num_parameters=sum(tensor.num_parameters for tensor in tensors.values()),
        tensors=tensors,
    )


def _class_of(index: Mapping[str, Any], part: str) -> str:
    """The class that model_index.json gives for a part, "" where it gives none."""
    entry = index.get(part)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] else ""


def _read_part(folder: Path, class_name: str, required: Component, allow_pickle: bool) -> Part:
    """One complete part. Raises JobError."""
    files, config = _read_config(folder, class_name, required)
    if not required.config:
        config_checks.check_tokenizer(folder, files)
    if not required.weights:
        return Part(folder, class_name, config=config)
    weights = find_weights(folder, *required.weights, allow_pickle=allow_pickle)
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


def _read_config(
    folder: Path, class_name: str, required: Component
) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """The files of a part, and its config, with which it can be trained. Raises JobError."""
    try:
        files = list_folder(folder).files
    except FileNotFoundError as error:
        raise JobError(bad_input(shown(folder), "is missing", COPY_AGAIN)) from error
    except OSError as error:
        raise JobError(unreadable(folder, error)) from error
    if not class_name:
        found = f"does not name the class of {folder.name}"
        raise JobError(bad_input(shown(folder.parent / "model_index.json"), found, COPY_AGAIN))
    if required.classes and class_name not in required.classes:
        found = f"is a {class_name}, which this version does not train"
        raise JobError(bad_input(shown(folder), found, USE_BASE))
    config = read_json(folder / required.config) if required.config else {}
    config_checks.check_input_channels(folder, config, required.in_channels)
    return tuple(files), config
