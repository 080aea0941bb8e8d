"""The four mounts: where they are, and whether one can be read. Nothing is ever written to a read-only mount."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sdjob.files import is_empty, shown
from sdjob.model.single_file import may_be_model
from sdjob.problems import JobError, bad_input
from sdjob.settings.run_spec import RunSpec
from sdlaunch.settings.options import LaunchOptions


@dataclass(frozen=True)
class Mounts:
    """Absolute paths of the four mounts."""

    model: Path
    dataset: Path
    project: Path
    output: Path


def resolve(options: LaunchOptions, home: Path) -> Mounts:
    """The mounts as absolute paths; `home` is the folder of train.sh."""
    return Mounts(
        _absolute(options.model_dir),
        _absolute(options.dataset_dir),
        _absolute(options.project_dir) if options.project_dir else home,
        _absolute(options.output_dir),
    )


def require(variable: str, path: Path, holds: str, name: str | None = None) -> None:
    """Raise JobError unless the mount is a folder, readable and not empty.

    An absolute `name` (of the model or the dataset) needs no mount, and MODEL_DIR may be a file.
    """
    if name and Path(name).is_absolute():
        return
    remedy = f"Mount {holds} there, or set {variable} to the folder that holds it."
    try:
        found = "is empty" if is_empty(path) else ""
        if not os.access(path, os.X_OK):  # then it can be listed, but nothing in it opened
            raise PermissionError
    except FileNotFoundError:
        found = "does not exist"
    except NotADirectoryError:
        is_model = variable == "MODEL_DIR" and not name and may_be_model(path)
        found = "" if is_model else "is a file, not a folder"
    except PermissionError:
        found = f"cannot be read by user {os.getuid()}"
        remedy = f"Make it readable for that user, or set {variable} to another folder."
    if found:
        raise JobError(bad_input(variable, f"{shown(path)} {found}", remedy))


def below_model(spec: RunSpec, mounts: Mounts) -> dict[str, str]:
    """The settings with a path below MODEL_DIR, made absolute."""
    return {"vae": str(mounts.model / spec.vae)} if spec.vae else {}


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
