"""report.json: what was trained, how fast, how well. The tutorials' keys are among its keys."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sdjob.settings.run_spec import RunSpec
from sdtrain.data.sampling import BatchShape
from sdtrain.reporting.stopwatch import Spent
from sdtrain.runtime import devices
from sdtrain.runtime.distributed import World


class Stopwatch:
    """Time of the training steps alone, without the first ones, checkpoints, and samples."""

    def __init__(self, device: torch.device, skip_steps: int) -> None:
        self._device, self.skip_steps = device, skip_steps
        self._seen = self.steps = 0
        self.seconds = 0.0
        self._since: float | None = None

    def step(self) -> None:
        """To be called after each step; starts measuring when the skipped ones are over."""
        self._seen += 1
        if self._since is not None:
            self.steps += 1
        elif self._seen >= self.skip_steps:
            self.go_on()

    def pause(self) -> None:
        """Before something that is no training step."""
        if self._since is not None:
            devices.synchronize(self._device)
            self.seconds += time.perf_counter() - self._since
            self._since = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around it; not for what ends the run."""
        self.pause()
        yield
        self.go_on()

    def go_on(self) -> None:
        """After it."""
        if self._seen >= self.skip_steps and self._since is None:
            devices.synchronize(self._device)
            self._since = time.perf_counter()

    @property
    def steps_per_second(self) -> float | None:
        """None: no step was measured."""
        running = time.perf_counter() - self._since if self._since is not None else 0.0
        seconds = self.seconds + running
        return self.steps / seconds if self.steps and seconds > 0 else None


@dataclass(frozen=True)
class TimedStep:
    """One step as benchmarks give it: its own time, forward to update, and its loss beside a published one."""

    step: int
    seconds: float
    loss: float  # mean over ranks and batches
    reference_loss: float | None


@dataclass(frozen=True)
class Outcome:
    """What the loop has to tell at the end."""

    first_step: int  # 0, or where the run was resumed
    last_step: int
    final_loss: float | None  # None: no step was applied
    mean_loss: float | None
    steps_per_second: float | None
    skip_steps: int
    num_examples: int
    spent_before: Spent  # by earlier starts of the run
    timed_step: TimedStep | None = None  # None: none was asked for, or an earlier part of the run had it
    skipped_steps: int = 0  # whose loss was no number
    bad_samples: tuple[str, ...] = ()  # images that could not be used


def report(
    spec: RunSpec, world: World, shape: BatchShape, outcome: Outcome, attention: str
) -> dict[str, Any]:
    """The report as plain values. Collective, for the largest memory of all ranks.

    seconds, device_hours: of all starts of the run; seconds_of_this_start: of the last one.
    """
    spent = outcome.spent_before.and_this_start(world.size)
    rate = outcome.steps_per_second
    images = rate * shape.global_batch if rate else None
    return {
        "trained": "lora" if spec.lora_rank else "unet",
        "train_text_encoder": spec.train_text_encoder,
        "pretrained_model_name_or_path": spec.pretrained_model_name_or_path,
        "recipe": spec.recipe,
        "plugin": spec.plugin,
        "resolution": spec.resolution,
        "device": world.kind.name,
        "device_name": _device_name(world),
        "local_rank": world.local_rank,
        "world_size": world.size,
        "batch_size": spec.train_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "global_batch_size": shape.global_batch,
        "num_examples": outcome.num_examples,
        "precision": spec.mixed_precision,
        "attention": spec.attention,
        "attention_backend": attention,
        "use_ema": spec.use_ema,
        "lora_rank": spec.lora_rank,
        "learning_rate": spec.learning_rate,
        "lr_scheduler": spec.lr_scheduler,
        "seed": spec.seed,
        "max_train_steps": spec.max_train_steps,
        "steps": outcome.last_step,
        "resumed_from_step": outcome.first_step,
        "skip_steps": outcome.skip_steps,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(spent.seconds, 1),
        "seconds_of_this_start": round(spent.seconds - outcome.spent_before.seconds, 1),
        "device_hours": round(spent.device_seconds / 3600, 4),
        "steps_per_second": rate,
        "images_per_second": images,
        "images_per_second_per_device": images / world.size if images else None,
        "peak_memory_bytes": max(world.gather(devices.peak_memory(world.device))),
        "timed_step": asdict(outcome.timed_step) if outcome.timed_step else None,
        "validation_prompts": list(spec.validation_prompts),
        "final_loss": outcome.final_loss,
        "mean_loss": outcome.mean_loss,
        "skipped_steps": outcome.skipped_steps,
        "bad_samples": list(outcome.bad_samples),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "peft", "datasets", "safetensors", "colossalai"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write(path: Path, values: dict[str, Any]) -> None:
    """Puts the report in place whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    temporary.replace(path)


def _device_name(world: World) -> str:
    name = getattr(world.kind.runtime, "get_device_name", None)
    return str(name()) if name else (platform.processor() or platform.machine())
