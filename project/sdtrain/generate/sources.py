"""The models that a command line names: what each is, and which base it belongs to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjob.files import few, shown, unreadable
from sdjob.model import trainable
from sdjob.model.pipeline import find_of
from sdjob.model.trainable import LORA_FILE
from sdjob.output import run_settings
from sdjob.output.checkpoint_files import STATE
from sdjob.output.layout import INDEX_FILE, OutputLayout, is_exported, step_folders
from sdjob.problems import JobError, Problem, bad_input, bad_setting
from sdjob.settings import flags
from sdjob.settings.run_spec import RunSpec
from sdtrain.generate.options import Options

# Settings of a run that say what the weights of its checkpoints are.
_TRAINED = {
    *("pretrained_model_name_or_path", "vae", "prediction_type", "single_file_config", "allow_pickle"),
    *("rescale_betas_zero_snr", "max_token_length", "train_text_encoder", "use_ema"),
    *("lora_rank", "lora_alpha", "lora_target_modules", "use_dora", "use_rslora"),
}


@dataclass(frozen=True)
class Source:
    """One model to generate with."""

    title: str  # its column in a grid, and its folder
    spec: RunSpec  # the base model, and what its trained weights are
    checkpoint: Path | None = None  # a step checkpoint, whose weights replace those of the base
    ema: bool = False
    lora: Path | None = None


def sources_of(options: Options) -> tuple[Source, ...]:
    """Every model of the command line, in its order, each once. Raises JobError with all problems (64, 66)."""
    paths: list[Path] = []
    problems: list[Problem] = []
    found: list[Source] = []
    for model in dict.fromkeys(options.models):
        try:
            paths += _expanded(Path(model).expanduser())
        except JobError as error:
            problems += error.problems
        except OSError as error:
            problems.append(unreadable(Path(error.filename or model), error))
    for path, title in zip(paths, _titles(paths), strict=True):
        try:
            found.append(_source(path, title, options))
            find_of(found[-1].spec)
        except JobError as error:
            problems += error.problems
        except OSError as error:
            problems.append(unreadable(path, error))
    if problems:
        raise JobError(problems)
    return tuple(found)


def _expanded(path: Path) -> Iterator[Path]:
    """The output folder of a run is all its step checkpoints, else its result. Raises JobError (66)."""
    layout = OutputLayout(path)
    if not layout.checkpoint.is_dir() or (path / INDEX_FILE).is_file():
        yield path
    elif steps := step_folders(layout)[::-1]:
        whole = [folder.path for folder in steps if folder.defect is None]
        if not whole:
            defects = few(f"{folder.path.name}: {folder.defect}" for folder in steps)
            raise JobError(
                bad_input(shown(path), f"holds no whole checkpoint ({defects})", "name another run")
            )
        yield from whole
    elif any(is_exported(layout.checkpoint, lora=lora) for lora in (True, False)):
        yield layout.checkpoint
    else:
        remedy = "wait for its first checkpoint, or name another run"
        raise JobError(bad_input(shown(layout.checkpoint), "holds neither a checkpoint nor a result", remedy))


def _titles(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ."""
    every = [path.absolute() for path in paths]
    for depth in range(1, max((len(path.parts) for path in every), default=1)):
        titles = ["-".join(path.parts[-depth:]) for path in every]
        if len({*titles}) == len(titles):
            return titles
    return [str(number) for number in range(len(paths))]


def _source(path: Path, title: str, options: Options) -> Source:
    """Raises JobError (64, 66)."""
    if (path / STATE).is_file():
        return _checkpoint(path, title, options)
    own = _own_lora(path)
    if own and options.lora:
        remedy = "Name the base model as MODEL, and one LoRA with --lora."
        raise JobError(bad_setting("--lora", f"{options.lora}, and {shown(path)} is a LoRA too", remedy))
    if own is None:
        return Source(title, _spec({}, str(path), options), lora=_given_lora(options))
    if not (base := options.base_model or _base_of_run(path)):
        remedy = "Name the model that the LoRA was trained on."
        raise JobError(bad_setting("--base_model", f"not given, and {shown(path)} is a LoRA", remedy))
    return Source(title, _spec({}, base, options), lora=own)


def _checkpoint(path: Path, title: str, options: Options) -> Source:
    """A step checkpoint, whose settings say what it is. Raises JobError (64, 66)."""
    settings = run_settings.settings_of(path)
    if settings.lora_rank and options.lora:
        remedy = f"Leave it out: the weight of {shown(path.name)} is --lora_scale."
        raise JobError(bad_setting("--lora", f"{options.lora}, and {shown(path)} is of a LoRA too", remedy))
    of_run = settings.pretrained_model_name_or_path
    if options.base_model is None and not Path(of_run).exists():
        remedy = "Name the folder or file of the model that the run started from."
        raise JobError(bad_setting("--base_model", f"not given, and {of_run} does not exist", remedy))
    trained = settings.model_dump(include=_TRAINED)
    spec = _spec(trained, options.base_model or of_run, options)
    lora = None if settings.lora_rank else _given_lora(options)
    return Source(title, spec, path, run_settings.uses_ema(spec, options.weights), lora)


def _own_lora(path: Path) -> Path | None:
    """The file of a LoRA that is named in the place of a model."""
    if path.is_dir():
        file = path / LORA_FILE
        return file if file.is_file() and not (path / INDEX_FILE).is_file() else None
    return path if path.suffix == ".safetensors" and path.is_file() and trainable.is_lora(path) else None


def _given_lora(options: Options) -> Path | None:
    """The file of --lora. Raises JobError (66)."""
    if options.lora is None:
        return None
    file = trainable.lora_file(str(Path(options.lora).expanduser()))
    exists = file.is_file()
    if not exists or not trainable.is_lora(file):
        remedy = "name the .safetensors file of a LoRA, or the folder of a result that is one"
        raise JobError(bad_input(shown(file), "is not a LoRA" if exists else "does not exist", remedy))
    return file


def _base_of_run(result: Path) -> str | None:
    """The base model of a result alongside the step checkpoints of its run, if it is still there."""
    for folder in sorted(result.glob("checkpoint-*"), reverse=True) if result.is_dir() else ():
        with contextlib.suppress(JobError):
            base = run_settings.settings_of(folder).pretrained_model_name_or_path
            return base if Path(base).exists() else None
    return None


def _spec(trained: Mapping[str, Any], base: str, options: Options) -> RunSpec:
    """The settings that a model is loaded and converted by."""
    values = {
        **trained,
        "pretrained_model_name_or_path": base,
        "output_dir": options.output,
        "device": options.device,
        "mixed_precision": options.mixed_precision,
    }
    return flags.validate(values | ({"allow_pickle": True} if options.allow_pickle else {}))
