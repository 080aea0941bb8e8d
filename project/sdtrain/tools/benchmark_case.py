"""`python -m sdtrain.tools.benchmark_case MODEL RESULT FLAGS…`: measure the speed and memory of one configuration.

`sdtrain.tools.benchmark` starts it for each of its rows. RESULT receives one JSON object.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from sdjob.exit_codes import ExitCode
from sdjob.problems import JobError, exit_code
from sdjob.settings import flags
from sdjob.settings.choices import CACHED
from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec
from sdtrain import resolve, strategies
from sdtrain.data.loader import on_device
from sdtrain.loop import gradients
from sdtrain.model import attention, compilation, load
from sdtrain.objective import diffusion
from sdtrain.optim.ema import Ema
from sdtrain.reporting.stopwatch import Stopwatch
from sdtrain.runtime import devices, errors
from sdtrain.runtime.distributed import World, join
from sdtrain.strategies.base import optim_spec
from sdtrain.tools import synthetic


def main(arguments: list[str]) -> int:
    model, result, *argv = arguments
    row: dict[str, Any]
    try:
        spec = flags.parse(argv)
        with join(spec.device, group_of_one=PLUGINS[spec.plugin].shards) as world:
            row = measure(spec, world, model)
    except Exception as error:
        problems = errors.problems_of(error)
        first = problems[0] if problems else repr(error)
        row = {"problem": str(first), "code": exit_code(problems) or int(ExitCode.TRAINING_FAILED)}
    if int(os.environ.get("RANK", 0)) == 0 or "problem" in row:
        Path(result).write_text(json.dumps(row) + "\n")
    return int(row.get("code", ExitCode.FINISHED))


def measure(spec: RunSpec, world: World, model: str) -> dict[str, Any]:
    """images/s per device = global batch / time per step / devices, without the first steps. Collective."""
    spec, problems = resolve.for_devices(spec, world)
    if problems:
        raise JobError(problems)
    parts = synthetic.parts(model, spec.mixed_precision, world.device, lora=spec.lora_rank > 0)
    side = spec.resolution // parts.latent_factor
    attention.prove(spec.attention, parts.denoiser, world.device, parts.dtype, side)
    strategy = strategies.create(spec, world.device)
    trainable = load.make_trainable(parts, spec)
    loss_of = compilation.compiled(diffusion.loss_of, trainable, spec, sizes=1)
    strategy.prepare(trainable, optim_spec(spec, parts.architecture.facts.denoiser))
    ema = Ema(strategy.masters(), spec.ema_decay) if spec.use_ema else None
    batches = synthetic.batches(parts, spec, world.rank)
    if spec.cache_latents in CACHED:
        batches = synthetic.cached(batches, parts)
    batches = on_device(batches, world.device)
    loss = torch.full((), math.nan)
    watch, compile_time = Stopwatch(world.device, spec.skip_steps), compilation.CompileTime()
    with compile_time.measured(spec, watch.paused):
        for _ in range(spec.max_train_steps):
            loss = [loss for _, loss in gradients(strategy, parts, spec, batches, loss_of)][-1]
            strategy.step(1.0)
            if ema:
                ema.update(strategy.masters())
            watch.step()
    watch.pause()
    final_loss = float(world.mean(loss))
    if not math.isfinite(final_loss):
        raise ValueError(f"the loss is {final_loss} after {spec.max_train_steps} steps")
    seconds_per_step = max(world.gather(1 / (watch.steps_per_second or math.nan)))
    return {
        "devices": world.size,
        "precision": spec.mixed_precision,
        "seconds_per_step": seconds_per_step,
        "images_per_second": spec.train_batch_size * spec.gradient_accumulation_steps / seconds_per_step,
        "peak_memory_bytes": max(world.gather(devices.peak_memory(world.device))),
        "final_loss": final_loss,
        "compile_seconds": max(world.gather(compile_time.seconds)),
        "attention": attention.running(spec.attention, parts.denoiser, world.device, parts.dtype),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
