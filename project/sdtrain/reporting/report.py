"""report.json: what was trained, how fast, how well. The tutorials' keys are among its keys."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sdjob.model import trainable
from sdjob.model.pipeline import PipelineFolder
from sdjob.writing import write_text
from sdtrain.checkpoint.checkpoint import TrainState
from sdtrain.model import attention
from sdtrain.reporting.metrics import VALIDATION
from sdtrain.runtime import devices
from sdtrain.runtime.distributed import World
from sdtrain.training import Training

# Settings with the same name in the report.
_SETTINGS = (
    "train_text_encoder",
    "pretrained_model_name_or_path",
    "recipe",
    "plugin",
    "resolution",
    "gradient_accumulation_steps",
    "attention",
    "compile",
    "use_ema",
    "lora_rank",
    "learning_rate",
    "lr_scheduler",
    "seed",
    "max_train_steps",
)


@dataclass(frozen=True)
class TimedStep:
    """One step as benchmarks publish it: its time from forward pass to update, and its loss."""

    step: int
    seconds: float
    loss: float  # mean over ranks and batches
    reference_loss: float | None  # the published one


@dataclass(frozen=True)
class Outcome:
    """The result of the step loop."""

    state: TrainState  # the state after the last step; its `spent` is that of earlier starts
    first_step: int  # 0, or where the run was resumed
    steps_per_second: float | None
    skip_steps: int
    compile_seconds: float = 0.0  # of this start, on this rank
    timed_step: TimedStep | None = None  # None: not asked for, or before the resume


def report(
    training: Training, model: PipelineFolder, outcome: Outcome, validated: Mapping[str, float]
) -> dict[str, Any]:
    """The content of report.json: each of its keys is here. Collective, for the largest memory of all ranks.

    `model`: the one that was trained; `validated`: the validation metrics after the last step.
    seconds, device_hours: of all starts of the run; seconds_of_this_start: of the last one.
    """
    spec, world, parts, state = training.spec, training.world, training.parts, outcome.state
    facts, global_batch = parts.architecture.facts, training.shape.global_batch
    spent = state.spent.and_this_start(world.size)
    rate = outcome.steps_per_second
    images = rate * global_batch if rate else None
    return {
        "model": facts.name,
        "trained": "lora" if spec.lora_rank else facts.denoiser,
        **{name: getattr(spec, name) for name in _SETTINGS},
        "batch_size": spec.train_batch_size,
        "precision": spec.mixed_precision,
        "validation_prompts": list(spec.validation_prompts),
        "attention_backend": attention.running(spec.attention, parts.denoiser, world.device, parts.dtype),
        "device": world.device_type.name,
        "device_name": _device_name(world),
        "local_rank": world.local_rank,
        "world_size": world.size,
        "global_batch_size": global_batch,
        "num_examples": training.num_examples,
        "steps": state.step,
        "resumed_from_step": outcome.first_step,
        "skip_steps": outcome.skip_steps,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(spent.seconds, 1),
        "seconds_of_this_start": round(spent.seconds - state.spent.seconds, 1),
        "device_hours": round(spent.device_seconds / 3600, 4),
        "compile_seconds": round(max(world.gather(outcome.compile_seconds)), 1),
        "steps_per_second": rate,
        "images_per_second": images,
        "images_per_second_per_device": images / world.size if images else None,
        "peak_memory_bytes": max(world.gather(devices.peak_memory(world.device))),
        "timed_step": asdict(outcome.timed_step) if outcome.timed_step else None,
        "final_loss": state.loss if math.isfinite(state.loss) else None,
        "mean_loss": state.mean_loss,
        "skipped_steps": state.skipped_steps,
        "bad_samples": list(state.bad_samples),
        "versions": versions(),
        "trained_parts": list(trainable.parts(spec, model)),
        **{name: validated.get(name) for name in VALIDATION},
        "held_out_examples": len(training.held_out.images) if training.held_out else 0,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "peft", "datasets", "safetensors", "colossalai"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=1) + "\n")


def _device_name(world: World) -> str:
    name = getattr(world.device_type.runtime, "get_device_name", None)
    return str(name()) if name else (platform.processor() or platform.machine())
