"""Find a pipeline on disk, with all parts present and all weight files complete, before anything is loaded.

It is a diffusers folder, or one file in the original layout (single_file.py), which looks like a folder to all callers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdjob.files import few, list_folder, missing, read_file, read_json, shown, unreadable
from sdjob.model import key_names, locate, single_file, torch_zip
from sdjob.model import vae as other_vae
from sdjob.model.architectures import ARCHITECTURE_FACTS, ArchitectureFacts, Component, titles
from sdjob.model.single_file import AUTO, SingleFile
from sdjob.model.weights import COPY_AGAIN, Part, read_config, with_weights
from sdjob.problems import JobError, Problem, bad_input
from sdjob.settings.run_spec import RunSpec

_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")  # of DDPMScheduler
_LIBRARIES = ("transformers", "diffusers", "stable_diffusion")  # the last has the safety checker of diffusers
_TEXT_MODELS = ("clip_text_model", "clip")
_CONFIG = "tokenizer_config.json"
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
_USE_BASE = f"use {titles()}"
_MAX_TIMESTEPS = 100_000
_MAX_SIDE = 1 << 16  # of the latents that a model was made for
_TITLES = {"vae": "VAE", "text_encoder": "text encoder", "text_encoder_2": "second text encoder"}


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline that can be trained: what is known without loading it."""

    path: Path  # the folder or the single file
    class_name: str
    prediction_type: str
    parts: Mapping[str, Part]
    single: SingleFile | None = None
    own_vae: Part | None = None  # the model's, where another one is used instead

    @property
    def architecture(self) -> ArchitectureFacts:
        return ARCHITECTURE_FACTS[self.class_name]

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
        return size * self.latent_factor if isinstance(size, int) and 0 < size <= _MAX_SIDE else None


def find_pipeline(
    root: Path,
    name: str | None,
    *,
    allow_pickle: bool,
    prediction_type: str = AUTO,
    single_file_config: str | None = None,
    vae: str | None = None,
) -> PipelineFolder:
    """The complete pipeline under a mount. Raises JobError with everything that is wrong with it.

    `prediction_type`, `single_file_config`: what a single file does not state (single_file.read). `vae`: another VAE
    than its own.
    """
    path = locate.model_path(root, name, allow_pickle=allow_pickle)
    single = None
    if path.is_file():
        configs = Path(single_file_config) if single_file_config else None
        single = single_file.read(path, configs, prediction_type, allow_pickle=allow_pickle)
    folder = single.configs if single else path
    index = read_json(folder / "model_index.json")
    class_name = str(index.get("_class_name", "pipeline of no named class"))
    if class_name not in ARCHITECTURE_FACTS:
        found = f"is a {class_name}, which this version does not train"
        raise JobError(bad_input(shown(folder), found, _USE_BASE))
    architecture = ARCHITECTURE_FACTS[class_name]
    if single and not architecture.original_layout:
        found = f"is one file, but this version reads {architecture.title} only from a diffusers folder"
        raise JobError(bad_input(shown(path), found, "mount the folder that save_pretrained writes"))
    foreign = _foreign_components(folder / "model_index.json", index, architecture)
    parts, problems = _parts(folder, index, architecture, single, allow_pickle=allow_pickle)
    own_vae = parts.get("vae") if vae else None
    if vae and own_vae:
        try:
            required = architecture.components["vae"]
            parts["vae"] = other_vae.find(Path(vae), own_vae, required, allow_pickle=allow_pickle)
        except JobError as error:
            problems += error.problems
    if problems := [*foreign, *problems]:
        raise JobError(problems)
    prediction = parts["scheduler"].config.get("prediction_type", architecture.prediction_types[0])
    return PipelineFolder(path, class_name, str(prediction), parts, single, own_vae)


def _parts(
    folder: Path,
    index: Mapping[str, Any],
    architecture: ArchitectureFacts,
    single: SingleFile | None,
    *,
    allow_pickle: bool,
) -> tuple[dict[str, Part], list[Problem]]:
    """The parts that a pipeline must have, and what is wrong with them."""
    parts: dict[str, Part] = {}
    problems: list[Problem] = []
    for name, required in architecture.components.items():
        try:
            part, files = _with_config(folder / name, _class_of(index, name), required)
            if name == "scheduler":
                part = replace(part, config={**part.config, **(single.scheduler if single else {})})
                problems += _schedule_problems(part, architecture)
            elif required.weights and single:
                part = _with_tensors(part, single, architecture)
            elif required.weights:
                part = with_weights(part, *required.weights, allow_pickle=allow_pickle)
                _check_is_model_itself(part, files)
            elif not required.config and not (single and single.is_published):
                _check_tokenizer(part.folder, files)
            parts[name] = part
        except JobError as error:
            problems += error.problems
    return parts, problems


def find_of(spec: RunSpec, root: Path | None = None, name: str | None = None) -> PipelineFolder:
    """The pipeline that the settings mean: at its path, or under a mount. Raises JobError."""
    return find_pipeline(
        root or Path(spec.pretrained_model_name_or_path),
        name,
        allow_pickle=spec.allow_pickle,
        prediction_type=spec.prediction_type,
        single_file_config=spec.single_file_config,
        vae=spec.vae,
    )


def _foreign_components(
    file: Path, index: Mapping[str, Any], architecture: ArchitectureFacts
) -> list[Problem]:
    """Components that this pipeline does not have, or of other libraries: names in an index are paths and imports."""
    found = []
    for name, entry in index.items():
        if not isinstance(entry, list) or not any(entry):
            continue
        component = architecture.components.get(name)
        libraries = (component.library,) if component else _LIBRARIES
        if component is None and name not in architecture.optional:
            found.append(f"names the component {shown(name)}, which {architecture.title} does not have")
        elif entry[0] not in libraries:
            found.append(f"takes {name} from {shown(str(entry[0]))}, which is not {' or '.join(libraries)}")
    return [bad_input(shown(file), what, COPY_AGAIN) for what in found]


def _class_of(index: Mapping[str, Any], part: str) -> str:
    """The class that model_index.json gives for a part, "" where it gives none."""
    entry = index.get(part)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] else ""


def _with_tensors(part: Part, single: SingleFile, architecture: ArchitectureFacts) -> Part:
    """A part with its tensors among those of the file. Raises JobError."""
    name, layout = part.folder.name, architecture.original_layout or ""
    try:
        tensors = key_names.diffusers_tensors(layout, name, part.config, single.tensors)
    except (TypeError, AttributeError) as error:  # values of any type
        found = f"has a value of the wrong type ({error})"
        raise JobError(bad_input(shown(part.folder / "config.json"), found, COPY_AGAIN)) from error
    if not tensors:
        title = {**_TITLES, architecture.denoiser: architecture.denoiser_title}.get(name, name)
        raise JobError(bad_input(shown(single.path), f"holds no {title}", single_file.WHOLE_MODEL))
    return part.with_tensors([single.path], tensors)


def _with_config(folder: Path, class_name: str, required: Component) -> tuple[Part, tuple[str, ...]]:
    """A part with the config that it needs to be trained, and the names of its files. Raises JobError."""
    try:
        files = list_folder(folder).files
    except FileNotFoundError as error:
        raise JobError(missing(folder, COPY_AGAIN)) from error
    except OSError as error:
        raise JobError(unreadable(folder, error)) from error
    if not class_name:
        found = f"does not name the class of {folder.name}"
        raise JobError(bad_input(shown(folder.parent / "model_index.json"), found, COPY_AGAIN))
    if required.classes and class_name not in required.classes:
        found = f"is a {class_name}, which this version does not train"
        raise JobError(bad_input(shown(folder), found, _USE_BASE))
    config = read_config(folder / required.config) if required.config else {}
    _check_input_channels(folder, config, required.in_channels)
    _check_scaling(folder, config)
    return Part(folder, class_name, config), files


# --- configs -----------------------------------------------------------------------------------------


def _check_input_channels(folder: Path, config: Mapping[str, Any], required: int | None) -> None:
    """Inpainting, depth and editing models differ only in the input channels of the U-Net. Raises JobError."""
    channels = config.get("in_channels", required)
    if required is not None and channels != required:
        what = " (an inpainting model)" if channels == 9 else ""
        found = (
            f"has {channels} input channels instead of {required}{what}, which this version does not train"
        )
        raise JobError(bad_input(shown(folder), found, _USE_BASE))


def _check_scaling(folder: Path, config: Mapping[str, Any]) -> None:
    """Latents are multiplied by it, and divided. Raises JobError."""
    factor = config.get("scaling_factor", 1)
    if type(factor) not in (int, float) or not 0 < factor < math.inf:
        found = f"scaling_factor is {shown(str(factor)[:40])}, not a number above 0"
        raise JobError(bad_input(shown(folder), found, COPY_AGAIN))


def _check_is_model_itself(part: Part, files: Sequence[str]) -> None:
    """Refuse files by which a loader takes other weights, or runs code. Raises JobError."""
    if "adapter_config.json" in files:  # transformers then loads the model that it names
        remedy = "remove adapter_config.json and the adapter; a LoRA to start from is given by lora_weights"
        raise JobError(bad_input(shown(part.folder), "holds the adapter of another model", remedy))
    if part.config.get("quantization_config"):
        remedy = "use the model before it was quantized"
        raise JobError(bad_input(shown(part.folder), "is quantized, and cannot be trained", remedy))
    kind = part.config.get("model_type", _TEXT_MODELS[0])
    if "CLIP" in part.class_name and kind not in _TEXT_MODELS:
        raise JobError(
            bad_input(shown(part.folder), f"is a {shown(str(kind))} by its config, not CLIP", COPY_AGAIN)
        )
    for path in part.weights if part.pickled else ():
        if names := torch_zip.foreign_names(path):
            found = f"is a pickle that calls {few(names, 3)}, which no weights need"
            raise JobError(
                bad_input(shown(path), found, "do not load it; use a model from a source you trust")
            )


def _schedule_problems(part: Part, architecture: ArchitectureFacts) -> list[Problem]:
    """What keeps the loss from being computed with a noise schedule."""
    subject, config, prediction_types = shown(part.folder), part.config, architecture.prediction_types
    found: list[Problem] = []
    for name in dict.fromkeys((part.class_name, str(config.get("_class_name", part.class_name)))):
        flow = "FlowMatch" in name or config.get("use_flow_sigmas") is True
        if architecture.schedulers and (flow or name not in architecture.schedulers):
            what = f"is a {name}" + (", for flow matching" if flow else "")
            remedy = f"copy the scheduler folder of the model itself; {architecture.title} has one such as "
            usual = few(architecture.schedulers[:5:2], 3)
            found.append(
                bad_input(subject, f"{what}, with which this version does not train", remedy + usual)
            )
    prediction_type = str(config.get("prediction_type", prediction_types[0]))
    if prediction_type not in prediction_types:
        what = f"prediction_type is {prediction_type!r}, which this version does not train"
        found.append(bad_input(subject, what, f"use {few(prediction_types)}"))
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 < steps <= _MAX_TIMESTEPS:
        what = f"num_train_timesteps is {steps!r}, not a number from 2 to {_MAX_TIMESTEPS:,}"
        found.append(bad_input(subject, what, COPY_AGAIN))
    elif what := _beta_fault(config, steps):
        found.append(bad_input(subject, what, COPY_AGAIN))
    curve = config.get("beta_schedule", "linear")
    if curve not in _BETA_SCHEDULES and config.get("trained_betas") is None:
        what = f"beta_schedule is {curve!r}, which is not one of {few(_BETA_SCHEDULES)}"
        found.append(bad_input(subject, what, COPY_AGAIN))
    return found


def _beta_fault(config: Mapping[str, Any], steps: int) -> str:
    """What is wrong with the numbers of a noise schedule; "": nothing."""
    values = {name: [config.get(name, 0.01)] for name in ("beta_start", "beta_end")}
    if (betas := config.get("trained_betas")) is not None:
        if not isinstance(betas, list) or len(betas) != steps:
            return f"trained_betas is not a list of {steps} numbers (num_train_timesteps)"
        values = {"trained_betas": betas}
    for name, each in ((name, each) for name, found in values.items() for each in found):
        if type(each) not in (int, float) or not 0 < each <= 1:
            return f"{name} is {shown(str(each)[:40])}, not a number above 0 and up to 1"
    return ""


def _check_tokenizer(folder: Path, names: Sequence[str]) -> None:
    """A tokenizer is tokenizer.json, or vocab.json with merges.txt. Raises JobError."""
    kind = read_json(folder / _CONFIG).get("tokenizer_class") if _CONFIG in names else None
    if kind and kind not in _TOKENIZERS:
        raise JobError(
            bad_input(shown(folder), f"is a {shown(str(kind))} by its config, not CLIP's", COPY_AGAIN)
        )
    if "tokenizer.json" in names:
        model = read_json(folder / "tokenizer.json").get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise JobError(
                bad_input(shown(folder / "tokenizer.json"), "is not a tokenizer of CLIP (BPE)", COPY_AGAIN)
            )
        return
    absent = [name for name in ("vocab.json", "merges.txt") if name not in names]
    if absent:
        found = f"{few(absent)} is missing (and no tokenizer.json)"
        raise JobError(bad_input(shown(folder), found, COPY_AGAIN))
    read_json(folder / "vocab.json")
    read_file(folder / "merges.txt")
