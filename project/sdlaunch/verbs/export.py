"""`export`: the result of a step checkpoint, as the end of its run leaves it, without training.

Everything that can be refused is refused here; the worker's part is one process on the CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sdjob.files import few, is_empty, unreadable
from sdjob.formatting import in_units
from sdjob.model import memory_estimate
from sdjob.model.pipeline import PipelineFolder, find_of
from sdjob.output import run_settings
from sdjob.output.layout import OutputLayout, step_folders
from sdjob.problems import JobError, Problem, bad_input, bad_output, bad_setting
from sdjob.settings import flags as worker_argv
from sdjob.settings.run_spec import RunSpec
from sdjob.writing import refuse_links
from sdlaunch import child_process
from sdlaunch.inputs import mounts as mount_paths
from sdlaunch.inputs.mounts import Mounts
from sdlaunch.packages import PACKAGES, missing, not_installed
from sdlaunch.preflight import estimates
from sdlaunch.preflight.output import unwritable
from sdlaunch.settings import names, settings
from sdlaunch.settings.settings import Settings

MODULE = "sdtrain.export.from_checkpoint"
# Settings that say how the result is written, and paths that may have changed; all others are those of the run.
_OF_RESULT = ("export_dtype", "export_single_file", "allow_pickle", "single_file_config", "vae", "cache_dir")
_ACCEPTED = {"OUTPUT_DIR", "MODEL_DIR", "model_name", "ENV_FILE", "CONFIG_FILE", "strict_env", *_OF_RESULT}


@dataclass(frozen=True)
class Export:
    """What is exported, and where to."""

    checkpoint: Path
    folder: Path
    spec: RunSpec  # of the run, with the folders of today
    weights: str

    @property
    def argv(self) -> tuple[str, ...]:
        paths = (str(self.checkpoint), str(self.folder))
        return (
            sys.executable,
            *("-m", MODULE, *paths, f"--weights={self.weights}"),
            *worker_argv.render(self.spec),
        )


def run(job: Export, environ: Mapping[str, str], home: Path) -> int:
    """Start the worker's part, and return its exit code; it ends with the launcher."""
    libraries = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
    path = {"PYTHONPATH": child_process.python_path(home / "project", environ.get("PYTHONPATH"))}
    return child_process.call(job.argv, {**libraries, **environ, **path})


def prepare(
    arguments: Mapping[str, str],
    flags: Sequence[tuple[str, str]],
    environ: Mapping[str, str],
    home: Path,
) -> Export:
    """Raises JobError with everything that is wrong (64, 66, 69, 73)."""
    read = settings.read(flags, environ)
    problems = [*read.problems, *_without_effect(flags)]
    if lacking := missing(PACKAGES):
        problems.append(not_installed(lacking))
    mounts = mount_paths.resolve(read.options, home)
    layout = OutputLayout(mounts.output)
    try:
        checkpoint = _checkpoint(layout, arguments.get("checkpoint"))
        spec = run_settings.settings_of(checkpoint)
        ema = run_settings.uses_ema(spec, arguments.get("weights"))
        target = arguments.get("to")
        folder = Path(target).expanduser().absolute() if target else layout.exports / checkpoint.name
        problems += _target_problems(folder, layout.root)
        spec = spec.model_copy(update=_overrides(read, layout))
        spec = spec.model_copy(update=mount_paths.below_model(spec, mounts))
        model = _model(spec, mounts, read, chosen={names.shown_name(name) for name, _ in flags})
        spec = spec.model_copy(update={"pretrained_model_name_or_path": str(model.path)})
        problems += _space_problems(folder, spec, model)
    except JobError as error:
        raise JobError([*problems, *error.problems]) from None
    if problems:
        raise JobError(problems)
    return Export(checkpoint, folder, spec, "ema" if ema else "raw")


def _checkpoint(layout: OutputLayout, name: str | None) -> Path:
    """The step checkpoint of this name or path. Raises JobError (64, 66)."""
    if name and Path(name).is_absolute() and Path(name).is_dir():
        return Path(name)
    try:
        there = [folder.path.name for folder in reversed(step_folders(layout))]
    except OSError as error:
        raise JobError(unreadable(layout.checkpoint, error)) from error
    if not there:
        found = f"{layout.checkpoint} holds no step checkpoints"
        raise JobError(bad_input("OUTPUT_DIR", found, "set OUTPUT_DIR to the output folder of the run"))
    if name in there:
        return layout.checkpoint / name
    found = f"{name} is not one of the run's" if name else "not given"
    meant = get_close_matches(name or "", there, n=1)
    remedy = f"Did you mean {meant[0]}? " if meant else ""
    raise JobError(bad_setting("checkpoint", found, f"{remedy}There are {few(there, 20)}."))


def _overrides(read: Settings, layout: OutputLayout) -> dict[str, Any]:
    """What the run's settings are replaced by: how to write the result, and the folders that are written now.

    Others may have written the settings: a cache elsewhere is one that is named today.
    """
    given = {name: getattr(read.spec, name) for name in _OF_RESULT if name in read.given}
    return {"cache_dir": None, **given, "output_dir": str(layout.root), "device": "cpu"}


def _model(spec: RunSpec, mounts: Mounts, read: Settings, chosen: Iterable[str]) -> PipelineFolder:
    """The model that the run started from; if it has moved, that of the mount. Raises JobError (66)."""
    if Path(spec.pretrained_model_name_or_path).exists() and not {"MODEL_DIR", "model_name"} & {*chosen}:
        return find_of(spec)
    name = read.options.model_name
    mount_paths.require("MODEL_DIR", mounts.model, "the model that the run started from", name)
    return find_of(spec, mounts.model, name)


def _without_effect(flags: Iterable[tuple[str, str]]) -> list[Problem]:
    """Flags that an export does not read; the environment may be that of the whole job."""
    known = [name for name, _ in flags if names.lookup(name, any_case=True)]
    others = [name for name in known if names.shown_name(name) not in _ACCEPTED]
    if not others:
        return []
    remedy = f"Leave it out: the settings are those of the run, and {', '.join(_OF_RESULT)} can be changed."
    return [bad_setting("command line", f"export with {', '.join(others)}", remedy)]


def _target_problems(folder: Path, output: Path) -> list[Problem]:
    """The folder must be empty or missing, and nothing above it a file."""
    other = "Name another folder with to=FOLDER, or empty this one."
    try:
        refuse_links(folder, output)
        if not is_empty(folder):
            return [bad_output("to", f"{folder} exists and is not empty", other)]
    except FileNotFoundError:
        parent = next(path for path in folder.parents if path.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            return [bad_output("to", f"{parent} cannot be written by user {os.getuid()}", other)]
    except OSError as error:
        return [bad_output("to", unwritable(Path(error.filename or folder), error).found, other)]
    return []


def _space_problems(folder: Path, spec: RunSpec, model: PipelineFolder) -> list[Problem]:
    size = memory_estimate.output_sizes(spec, model)
    existing, _, free = estimates.free_at(folder)
    if size is None or free >= size.result:
        return []
    found = f"{in_units(free)} free at {existing}, {in_units(size.result)} needed"
    return [bad_output("to", found, "Free some space, or name a folder on a larger volume with to=FOLDER.")]
