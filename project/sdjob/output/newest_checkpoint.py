"""The checkpoint that a run continues: the meaning of `resume`, the state in it, and whether the run is finished."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sdjob import reading
from sdjob.output.checkpoint_files import READABLE_FORMATS, STATE
from sdjob.output.layout import OutputLayout, StepFolder, defect_of, is_exported, step_folders
from sdjob.problems import JobError, Problem, bad_setting
from sdjob.settings.run_spec import RunSpec

_MOST_NAMED, _NO_MORE = 20, "; if there are more, they are not named"  # of those that are skipped
_RENAMED = {"place": "samples_seen"}  # keys of format 2


def newest(
    layout: OutputLayout,
    setting: str,
    skipped: Callable[[StepFolder, str], object],
    *,
    hashes: bool,
    largest: float = math.inf,
) -> StepFolder | None:
    """The checkpoint that `resume` means; None: start from the beginning. Raises JobError (64).

    `skipped` is called for the newest incomplete ones with the reason; `hashes` reads every byte, of at most `largest`
    bytes. A named checkpoint starts a branch; once that has checkpoints, the same command continues from the newest of
    them.
    """
    if setting == "never":
        return None
    origin = origin_of(layout, setting)
    num_skipped = 0
    for folder in step_folders(layout):
        defect = folder.defect or (defect_of(folder.path, hashes=True, largest=largest) if hashes else None)
        values = {} if defect else read_values(folder.path)
        if not defect and values["step"] != folder.step:
            defect = f"its {STATE} is of step {values['step']}: the folder was copied or renamed"
        if defect:
            num_skipped += 1
            if num_skipped <= _MOST_NAMED:
                skipped(folder, defect + (_NO_MORE if num_skipped == _MOST_NAMED else ""))
        elif not origin or values.get("origin", "") == origin:
            return folder
    if origin:
        return _named(Path(origin), hashes=hashes, largest=largest)
    if setting == "must":
        found = f"must, but there is no complete checkpoint in {layout.checkpoint}"
        remedy = "Use resume=auto, or set OUTPUT_DIR to the folder of the run to continue."
        raise JobError(bad_setting("resume", found, remedy))
    return None


def origin_of(layout: OutputLayout, setting: str) -> str:
    """The absolute path of the checkpoint that `resume` names; empty: it names none.

    A bare name, as diffusers writes it, is one of the output folder: checkpoint-500 is checkpoint-000500.
    """
    if setting in ("auto", "must", "never"):
        return ""
    name = re.fullmatch(r"checkpoint-(\d+)", setting)
    return os.path.realpath(layout.step_folder(int(name[1])) if name else setting)


def read_values(folder: Path) -> dict[str, Any]:
    """The state in a whole checkpoint; raises JobError (64) if an incompatible version wrote it."""
    try:
        values = reading.json_of(reading.content(folder / STATE, reading.MESSAGE))
    except (OSError, ValueError) as error:
        raise JobError(foreign_state(folder, str(error))) from error
    if not isinstance(values, dict):
        raise JobError(foreign_state(folder, "not an object"))
    version = values.pop("format", None)
    if version not in READABLE_FORMATS:
        readable = " and ".join(map(str, READABLE_FORMATS))
        raise JobError(foreign_state(folder, f"format {version}, this version reads {readable}"))
    values = {_RENAMED.get(name, name): value for name, value in values.items()}
    facts = values.get("fingerprint")
    if not (isinstance(values.get("step"), int) and isinstance(facts, dict) and _are_texts(facts.values())):
        raise JobError(foreign_state(folder, "no step or no fingerprint"))
    return values


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def foreign_state(folder: Path, found: str) -> Problem:
    """The problem of a whole checkpoint whose state does not say what this version needs."""
    remedy = "Continue with the version that wrote it, or start another run with a new OUTPUT_DIR."
    return bad_setting("resume", f"{folder / STATE}: {found}", remedy)


def unloadable(folder: Path, found: str) -> Problem:
    """The problem of a whole checkpoint whose weights or optimizer state are not what a run saves."""
    remedy = "Move this folder away, so that the run continues from an earlier checkpoint."
    return bad_setting("resume", f"{folder} cannot be loaded ({found})", remedy)


def is_finished(spec: RunSpec, layout: OutputLayout, step: int) -> bool:
    """Whether the result of all these steps is there: exported, and reported, which comes last."""
    return (
        step >= spec.max_train_steps
        and is_exported(layout.checkpoint, lora=spec.lora_rank > 0)
        and _reported_steps(layout.report) >= step
    )


def _reported_steps(report: Path) -> int:
    try:
        return int(reading.json_of(reading.content(report, reading.MESSAGE))["steps"])
    except (OSError, *reading.NOT_AS_WRITTEN):
        return 0


def _named(folder: Path, *, hashes: bool, largest: float) -> StepFolder:
    defect = defect_of(folder, hashes=hashes, largest=largest) if folder.is_dir() else "is not a folder"
    if defect:
        remedy = "Name a complete checkpoint folder, or use auto, never or must."
        raise JobError(bad_setting("resume", f"{folder}: {defect}", remedy))
    return StepFolder(int(read_values(folder)["step"]), folder, None)
