"""Checks of single config files: what a part must be to be trained. No weights are read.

Tests: tests/sdjob/model/test_pipeline.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdjob.files import few, read_file, read_json, shown
from sdjob.model import architectures
from sdjob.problems import JobError, Problem, bad_input

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")  # of DDPMScheduler
COPY_AGAIN = "copy the whole pipeline folder again (save_pretrained writes all of it)"
USE_BASE = f"use {architectures.titles()}"
_MAX_TIMESTEPS = 100_000


def check_input_channels(folder: Path, config: Mapping[str, Any], required: int | None) -> None:
    """Inpainting, depth and editing models differ only in the input channels of the U-Net. Raises JobError."""
    channels = config.get("in_channels", required)
    if required is not None and channels != required:
        what = " (an inpainting model)" if channels == 9 else ""
        found = (
            f"has {channels} input channels instead of {required}{what}, which this version does not train"
        )
        raise JobError(bad_input(shown(folder), found, USE_BASE))


def schedule_problems(
    folder: Path, config: Mapping[str, Any], prediction_types: Sequence[str]
) -> list[Problem]:
    """What keeps the loss from being computed with a noise schedule."""
    subject = shown(folder)
    found: list[Problem] = []
    prediction_type = str(config.get("prediction_type", prediction_types[0]))
    if prediction_type not in prediction_types:
        what = f"prediction_type is {prediction_type!r}, which this version does not train"
        found.append(bad_input(subject, what, f"use {few(prediction_types)}"))
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 < steps <= _MAX_TIMESTEPS:
        what = f"num_train_timesteps is {steps!r}, not a number from 2 to {_MAX_TIMESTEPS:,}"
        found.append(bad_input(subject, what, COPY_AGAIN))
    curve = config.get("beta_schedule", "linear")
    if curve not in BETA_SCHEDULES and config.get("trained_betas") is None:
        what = f"beta_schedule is {curve!r}, which is not one of {few(BETA_SCHEDULES)}"
        found.append(bad_input(subject, what, COPY_AGAIN))
    return found


def check_tokenizer(folder: Path, names: Sequence[str]) -> None:
    """A tokenizer is tokenizer.json, or vocab.json with merges.txt. Raises JobError."""
    if "tokenizer.json" in names:
        read_json(folder / "tokenizer.json")
        return
    missing = [name for name in ("vocab.json", "merges.txt") if name not in names]
    if missing:
        found = f"{few(missing)} is missing (and no tokenizer.json)"
        raise JobError(bad_input(shown(folder), found, COPY_AGAIN))
    read_json(folder / "vocab.json")
    read_file(folder / "merges.txt")
