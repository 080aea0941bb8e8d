"""How long a run will take: an estimate from a speed that was measured, with its basis; without one it says so."""

from __future__ import annotations

import contextlib
import os
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sdjob import reading
from sdjob.formatting import counted
from sdjob.model import trainable
from sdjob.output import run_settings, starts
from sdjob.output.layout import OutputLayout, StepFolder, step_folders
from sdjob.problems import JobError
from sdjob.settings import steps
from sdjob.settings.run_spec import RunSpec
from sdlaunch.preflight.job import Job, Note

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"

# Settings that change the speed of a step.
_SPEED = """
pretrained_model_name_or_path recipe train_text_encoder resolution aspect_ratio_buckets with_prior_preservation
cache_latents cache_text_embeddings train_batch_size gradient_accumulation_steps optimizer plugin placement
zero_stage reshard_after_forward cpu_offload mixed_precision gradient_checkpointing attention device allow_tf32
use_ema lora_rank use_dora
"""
_LAST = 100  # logged steps whose median counts
_TAIL = 1 << 20  # bytes at the end of the metrics
_MODELS = {859_520_964: "sd14", 865_910_724: "sd21"}  # parameters of the U-Net → the name in the results
_TITLES = {"none": "Traditional"}  # of plugins in the results, where they differ


@dataclass(frozen=True)
class Speed:
    """Images per second of one process, and where this is known from."""

    images_per_second: float
    basis: str


def findings(job: Job) -> list[Note]:
    """One line of the plan."""
    if job.has_script:
        return []
    folders = [each for each in step_folders(OutputLayout(job.mounts.output)) if each.defect is None]
    done = folders[0].step if folders and job.spec.resume != "never" else 0
    left = job.spec.max_train_steps - done
    if left <= 0:
        return []
    known = _of_earlier_run(job, folders) or _of_results(job)
    if known is None:
        why = "no speed was measured on this device with this model and these settings"
        return [
            Note(f"time: no estimate, since {why}; once a run has a checkpoint here, `plan` uses its speed")
        ]
    return [Note(_line(job, known, left))]


def _line(job: Job, speed: Speed, left: int) -> str:
    per_step, world = steps.global_batch(job.spec, job.cluster.world_size), job.cluster.world_size
    rate = speed.images_per_second * world
    seconds = left * per_step / rate
    shown = timedelta(seconds=max(1, round(seconds)))
    length = f"{counted(left, 'step')} × {counted(per_step, 'image')}"
    return (
        f"time (estimate): {length} / {rate:.3g} images/s = {shown}, "
        f"{seconds * world / 3600:.2g} device hours, and the time of starts, checkpoints and validation; {speed.basis}"
    )


def _of_earlier_run(job: Job, folders: list[StepFolder]) -> Speed | None:
    """From the logged steps of a run in the output folder with the same settings, on any number of processes."""
    layout = OutputLayout(job.mounts.output)
    with contextlib.suppress(JobError, OSError, ValueError, TypeError, AttributeError):
        before = run_settings.settings_of(folders[0].path) if folders else None
        if before is None or not _same_speed(before, job.spec):
            return None
        with reading.opened(layout.metrics) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read(_TAIL).splitlines()[-10 * _LAST :]
        values = [reading.json_of(line).get("images_per_second") for line in lines if line.strip()]
        rates = [float(value) for value in values if value][-_LAST:]
        processes = next((each.processes for each in reversed(starts.read(layout)) if each.processes), 0)
        if rates and processes:
            many = f"{counted(len(rates), 'logged step')} of the run in {layout.root}"
            basis = f"the median of {many}, with {counted(processes, 'process')}"
            return Speed(statistics.median(rates) / processes, basis)
    return None


def _same_speed(before: RunSpec, now: RunSpec) -> bool:
    pairs = ((getattr(before, name), getattr(now, name)) for name in _SPEED.split())
    return all(one == other or "auto" in (one, other) for one, other in pairs)


def _of_results(job: Job) -> Speed | None:
    """From the tables of benchmarks/results, of devices of the same name."""
    model, spec = job.contents.model, job.spec
    special = spec.lora_rank or spec.gradient_checkpointing or spec.train_text_encoder or spec.use_ema
    if model is None or job.devices.name is None or special:
        return None
    count = trainable.parameters(spec, model)
    title = f"{_MODELS.get(count or 0)}, random weights, {spec.resolution} px"
    with contextlib.suppress(OSError):
        for file in sorted(RESULTS.glob("*.json"), reverse=True):
            for table, row in _rows(file):
                if str(table.get("model", "")).startswith(title) and _is_of(row, table, job):
                    speed = float(row["images_per_second"]) / int(row["devices"])
                    return Speed(speed, f"from benchmarks/results/{file.name}, measured with random weights")
    return None


def _rows(file: Path) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The head of a table and each of its rows with a speed, none of a file in another form."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        table = reading.json_of(reading.content(file))
        yield from ((table, row) for row in table["rows"] if row.get("images_per_second"))


def _is_of(row: Mapping[str, Any], table: Mapping[str, Any], job: Job) -> bool:
    spec = job.spec
    strategy = re.sub(r" cached$", "", str(row.get("strategy")))
    cached = spec.cache_latents != "no" and spec.cache_text_embeddings != "no"
    return (
        table.get("device name") == job.devices.name
        and strategy == _TITLES.get(spec.plugin, spec.plugin)
        and row.get("batch_size") == spec.train_batch_size
        and bool(row.get("cached")) == cached
        and row.get("details", {}).get("precision") == spec.mixed_precision
    )
