"""The settings of the run that wrote a step checkpoint: they say what its weights are."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sdjob import reading
from sdjob.files import read_json, shown
from sdjob.output.checkpoint_files import SETTINGS
from sdjob.output.layout import OutputLayout, defect_of
from sdjob.problems import JobError, bad_input, bad_setting
from sdjob.settings import flags
from sdjob.settings.run_spec import RunSpec

WEIGHTS = ("ema", "raw")


def write(folder: Path, spec: RunSpec) -> None:
    """Add the settings to a checkpoint that is being written. Raises OSError."""
    (folder / SETTINGS).write_text(json.dumps(flags.render(spec), indent=1) + "\n")


def settings_of(checkpoint: Path) -> RunSpec:
    """From the checkpoint itself; of an older one from the plan of its run. Raises JobError (64, 66)."""
    if defect := defect_of(checkpoint, hashes=False):
        raise JobError(bad_input(shown(checkpoint), defect, "Name another checkpoint of the run."))
    if (checkpoint / SETTINGS).is_file():
        return _parsed(_words(checkpoint / SETTINGS), checkpoint / SETTINGS)
    plan = OutputLayout(Path(os.path.realpath(checkpoint)).parents[1]).run / "plan.json"
    if not plan.is_file():
        found = f"is a step checkpoint of an earlier version, and the plan of its run, {plan}, does not exist"
        remedy = "Name the checkpoint in the output folder where its run wrote it."
        raise JobError(bad_input(shown(checkpoint), found, remedy))
    argv = read_json(plan).get("argv")
    if not isinstance(argv, list) or "sdtrain" not in argv or not all(isinstance(word, str) for word in argv):
        raise JobError(bad_input(shown(plan), "has no command of a run", "copy it from the run again"))
    return _parsed(argv[argv.index("sdtrain") + 1 :], plan)


def _parsed(words: list[str], path: Path) -> RunSpec:
    """Raises JobError, also for the flag that would print the help and end the process."""
    if any(word.startswith("-h") or word == "--help" for word in words):
        raise JobError(bad_input(shown(path), "asks for help", "Name another checkpoint of the run."))
    return flags.parse(words)


def _words(path: Path) -> list[str]:
    """The flags in a file. Raises JobError."""
    try:
        words = reading.json_of(reading.content(path, reading.MESSAGE))
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("not a list of flags")
    except (OSError, ValueError) as error:
        remedy = "Name another checkpoint of the run."
        raise JobError(bad_input(shown(path), f"cannot be read ({error})", remedy)) from error
    return words


def uses_ema(spec: RunSpec, weights: str | None) -> bool:
    """Whether `weights` means the EMA; None: if the run has one. Raises JobError (64)."""
    if weights not in (None, *WEIGHTS):
        raise JobError(bad_setting("weights", f"found {weights!r}", f"Write one of {', '.join(WEIGHTS)}."))
    if weights == "ema" and not spec.use_ema:
        found = "ema, and the run of this checkpoint has use_ema=0"
        raise JobError(bad_setting("weights", found, "Leave it out, or write weights=raw."))
    return spec.use_ema and weights != "raw"
