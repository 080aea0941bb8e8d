"""`python -m sdtrain.tools.benchmark_case MODEL RESULT FLAGS…`: measure the speed and memory of one configuration.

What `sdtrain.tools.benchmark` starts again for each of its rows. RESULT receives one JSON object.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sdjob.problems import ExitCode, JobError
from sdjob.settings import compatibility, flags
from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec
from sdtrain import strategies
from sdtrain.model import attention, load
from sdtrain.objective.diffusion import loss_of, noised
from sdtrain.optim.ema import Ema
from sdtrain.runtime import devices, errors
from sdtrain.runtime.distributed import World, join
from sdtrain.strategies.base import OptimSpec, ParameterGroup
from sdtrain.tools import synthetic


def main(arguments: list[str]) -> int:
    model, result, *argv = arguments
    spec = flags.parse(argv)
    row: dict[str, Any]
    try:
        with join(spec.device, group_of_one=PLUGINS[spec.plugin].shards) as world:
            row = measured(spec, world, model)
    except JobError as error:
        row = {"problem": str(error.problems[0]), "code": error.code}
    except Exception as error:
        problem = errors.problem_of(error)
        row = {"problem": str(problem or repr(error)), "code": problem.code if problem else 70}
    if int(os.environ.get("RANK", 0)) == 0 or "problem" in row:
        Path(result).write_text(json.dumps(row) + "\n")
    return int(row.get("code", ExitCode.FINISHED))


def measured(spec: RunSpec, world: World, model: str) -> dict[str, Any]:
    """images/s per device = global batch / time per step / devices, without the first steps. Collective."""
    topology = devices.topology(world.device_type, world.size)
    precision = compatibility.resolve_precision(spec, topology)
    spec = spec.model_copy(update={"mixed_precision": precision, "device": world.device_type.name})
    if problems := compatibility.problems(spec, topology):
        raise JobError(problems)
    parts = synthetic.parts(model, precision, world.device, lora=spec.lora_rank > 0)
    attention.prove(spec.attention, parts.denoiser, world.device, parts.dtype)
    strategy = strategies.create(spec, world.device, world.size)
    strategy.prepare(load.make_trainable(parts, spec), _optim(spec))
    ema = Ema(strategy.masters(), spec.ema_decay) if spec.use_ema else None
    batches = synthetic.batches(spec.train_batch_size, spec.resolution, world.rank)
    if spec.cache_latents != "no":
        batches = synthetic.cached(batches, parts, spec)
    accumulation = spec.gradient_accumulation_steps
    losses: list[torch.Tensor] = []
    begin = time.perf_counter()
    for step in range(spec.max_train_steps):
        if step == spec.skip_steps:
            devices.synchronize(world.device)
            begin = time.perf_counter()
        for micro in range(accumulation):
            batch = noised(parts, next(batches), spec)
            with strategy.accumulate(micro == accumulation - 1), attention.chosen(spec.attention):
                with strategy.autocast():
                    loss = loss_of(strategy.model, batch)
                strategy.backward(loss / accumulation)
        strategy.step(1.0)
        if ema:
            ema.update(strategy.masters())
        losses.append(loss.detach())
    devices.synchronize(world.device)
    seconds = (time.perf_counter() - begin) / (spec.max_train_steps - spec.skip_steps)
    final = float(world.mean(losses[-1]))
    if not math.isfinite(final):
        raise ValueError(f"the loss is {final} after {spec.max_train_steps} steps")
    return {
        "devices": world.size,
        "precision": precision,
        "seconds_per_step": max(world.gather(seconds)),
        "images_per_second": spec.train_batch_size * accumulation / max(world.gather(seconds)),
        "peak_memory_bytes": max(world.gather(devices.peak_memory(world.device))),
        "final_loss": final,
        "attention": attention.running(spec.attention, parts.denoiser, world.device, parts.dtype),
    }


def _optim(spec: RunSpec) -> OptimSpec:
    return OptimSpec(
        groups=(ParameterGroup("", spec.learning_rate),),
        betas=(spec.adam_beta1, spec.adam_beta2),
        weight_decay=spec.adam_weight_decay,
        epsilon=spec.adam_epsilon,
        max_grad_norm=spec.max_grad_norm,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
