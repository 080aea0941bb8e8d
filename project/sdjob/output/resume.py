"""Where a run goes on: the checkpoint that `resume` means, what its state says, and whether the run is finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdjob.output.layout import OutputLayout, StepFolder, defect_of, is_exported, step_folders
from sdjob.problems import JobError, bad_setting
from sdjob.settings.run_spec import RunSpec

STATE = "state.json"
FORMAT = 2  # of the whole folder; to be raised when an older one can no longer be read


def newest(
    layout: OutputLayout,
    resume: str,
    passed_over: Callable[[StepFolder, str], object],
    *,
    hashes: bool,
) -> StepFolder | None:
    """The checkpoint that `resume` means; None: start afresh. Raises JobError (64).

    Newer ones that are not whole are `passed_over` with the reason; `hashes` reads every byte. A named folder is
    where a new course begins; once that has a checkpoint of its own, the same command goes on from there.
    """
    if resume == "never":
        return None
    origin = origin_of(resume)
    for folder in step_folders(layout):
        defect = folder.defect or (defect_of(folder.path, hashes=True) if hashes else None)
        if defect:
            passed_over(folder, defect)
        elif not origin or values_of(folder.path).get("origin", "") == origin:
            return folder
    if origin:
        return _given(Path(resume), hashes=hashes)
    if resume == "must":
        found = f"must, and no whole checkpoint in {layout.checkpoint}"
        remedy = "Use resume=auto, or set OUTPUT_DIR to the folder of the run to go on with."
        raise JobError(bad_setting("resume", found, remedy))
    return None


def origin_of(resume: str) -> str:
    """The folder that a setting of `resume` names, in full; nothing where it names none."""
    return "" if resume in ("auto", "must", "never") else str(Path(resume).resolve())


def values_of(folder: Path) -> dict[str, Any]:
    """The state in a whole checkpoint; raises JobError (64) if another version of this project wrote it."""
    values: dict[str, Any] = json.loads((folder / STATE).read_text())
    found = values.pop("format", None)
    if found != FORMAT:
        remedy = "Continue with the version that wrote it, or start another run with a new OUTPUT_DIR."
        raise JobError(
            bad_setting("resume", f"{folder} has format {found}, this version reads {FORMAT}", remedy)
        )
    return values


def is_finished(spec: RunSpec, layout: OutputLayout, start: StepFolder) -> bool:
    """Whether the result of all these steps is there: exported, and reported, which comes last."""
    return (
        start.step >= spec.max_train_steps
        and is_exported(layout.checkpoint, lora=spec.lora_rank > 0)
        and _steps_in(layout.report) >= start.step
    )


def _steps_in(report: Path) -> int:
    """The steps that the report in place speaks of; 0: there is none."""
    try:
        return int(json.loads(report.read_text())["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _given(folder: Path, *, hashes: bool) -> StepFolder:
    defect = defect_of(folder, hashes=hashes) if folder.is_dir() else "is not a folder"
    if defect:
        remedy = "Give the folder of a whole checkpoint, or auto, never or must."
        raise JobError(bad_setting("resume", f"{folder}: {defect}", remedy))
    return StepFolder(int(values_of(folder)["step"]), folder, None)
