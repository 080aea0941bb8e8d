"""Generate the images of a command line, in one process or several, and write them with what they were made by.

An image depends on model, prompt, seed and settings alone: the batches, which decide its last bits, are the same on any
number of devices. Several models get a folder each, and a grid: a column for each model, a row for each prompt.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from diffusers.utils import scale_lora_layers
from PIL.PngImagePlugin import PngInfo

from sdjob import writing
from sdjob.children.start import end_with
from sdjob.exit_codes import ExitCode
from sdjob.files import shown
from sdjob.formatting import counted
from sdjob.problems import JobError, Problem, bad_output
from sdjob.settings import compatibility
from sdtrain.architectures.base import GenerationSettings, Parts
from sdtrain.export import from_checkpoint
from sdtrain.generate import samplers
from sdtrain.generate.options import Options
from sdtrain.generate.sources import Source
from sdtrain.model import lora
from sdtrain.model.generation import generate
from sdtrain.model.load import load
from sdtrain.reporting.progress import say
from sdtrain.runtime import devices
from sdtrain.validation.grid import grid, image_name

GRID = "grid.png"
Batch = tuple[tuple[int, int], ...]  # (prompt, number) of each image


@dataclass(frozen=True)
class Job:
    """Everything that is generated."""

    options: Options
    sources: tuple[Source, ...]
    prompts: tuple[str, ...]

    @property
    def batches(self) -> list[tuple[int, Batch]]:
        """All batches of all models, those of one model in a row: (number of the model, batch)."""
        images = [(p, i) for p in range(len(self.prompts)) for i in range(self.options.num_images)]
        size = self.options.sample_batch_size
        batches = [tuple(images[start : start + size]) for start in range(0, len(images), size)]
        return [(model, batch) for model in range(len(self.sources)) for batch in batches]

    def folder(self, source: Source) -> Path:
        root = Path(self.options.output).expanduser()
        return root / source.title if len(self.sources) > 1 else root


def write(options: Options, sources: tuple[Source, ...], prompts: tuple[str, ...]) -> None:
    """Raises JobError (66, 69, 71, 73)."""
    job = Job(options, sources, prompts)
    device = devices.choose(options.device)
    for source in job.sources:
        with _writing():
            job.folder(source).mkdir(parents=True, exist_ok=True)
            text = json.dumps(job.prompts, ensure_ascii=False)
            writing.write_text(job.folder(source) / "prompts.json", f"{text}\n")
        # Converted, where that is needed, before several processes want to.
        from_checkpoint.base_model(source.spec)
    count = _processes(job, device)
    total = counted(sum(len(batch) for _, batch in job.batches), "image")
    models = counted(len(job.sources), "model")
    say(f"{total} of {counted(len(prompts), 'prompt')}, {models}: {count} × {device.name}")
    if count == 1:
        _generate(job, 0, 1)
    else:
        _in_processes(job, count)
    root = Path(options.output).expanduser()
    if len(job.sources) > 1 or options.grid:
        columns = {source.title: job.folder(source) for source in job.sources}
        with _writing():
            writing.write_png(root / GRID, grid(columns, job.prompts, options.num_images))
        say(f"grid: {root / GRID}")
    say(f"finished: {total} in {root}")


def _processes(job: Job, device: devices.DeviceType) -> int:
    """Never more than there are batches."""
    wanted = job.options.nproc_per_node
    return min(devices.count(device) if wanted == "auto" else int(wanted), len(job.batches))


def _in_processes(job: Job, count: int) -> None:
    """Raises JobError, and what fails in a process."""
    spawn = multiprocessing.get_context("spawn")  # an accelerator's library does not survive a fork
    with ProcessPoolExecutor(count, spawn, end_with, (os.getpid(), signal.SIGTERM)) as pool:
        slices = [pool.submit(_generate, job, rank, count) for rank in range(count)]
        try:
            for each in slices:
                each.result()
        except BrokenProcessPool:
            remedy = "Use fewer processes (--nproc_per_node=1), or smaller batches (--sample_batch_size=1)."
            found = f"one of {count} was killed, probably for want of memory"
            raise JobError(Problem(int(ExitCode.OUT_OF_MEMORY), "processes", found, remedy)) from None


def _generate(job: Job, rank: int, count: int) -> None:
    """One process's slice: neighbouring batches, so that it loads few models. Raises JobError (64, 66, 69, 73)."""
    device_type = devices.choose(job.options.device)
    device = devices.device_of(device_type, rank)
    batches = job.batches
    mine = batches[rank * len(batches) // count : (rank + 1) * len(batches) // count]
    for model, group in groupby(mine, key=lambda item: item[0]):
        source = job.sources[model]
        parts = _loaded(source, job.options, device_type, device)
        _write(job, source, parts, [batch for _, batch in group])
        say(f"{source.title}: done")
        del parts  # before the next one is loaded


def _loaded(source: Source, options: Options, device_type: devices.DeviceType, device: torch.device) -> Parts:
    """The model in memory, with its LoRA in the weights, and with the sampler that is asked for. Raises JobError."""
    spec = source.spec
    model = from_checkpoint.base_model(spec)
    precision = compatibility.resolve_precision(spec, devices.topology(device_type, 1))
    if source.checkpoint:
        from_checkpoint.check_base(source.checkpoint, model)
        parts, _ = from_checkpoint.trained(source.checkpoint, model, spec, precision, device, ema=source.ema)
        for part in parts.trainable.values():
            scale_lora_layers(part, options.lora_scale)  # that of the run is not merged
    else:
        parts = load(model, precision, device, allow_pickle=spec.allow_pickle, lora=True)
    if source.lora:
        lora.merge(source.lora, parts, options.lora_scale)
    if options.scheduler:
        parts = replace(
            parts, sampler=samplers.created(options.scheduler, parts.sampler, options.num_inference_steps)
        )
    return parts


def _write(job: Job, source: Source, parts: Parts, batches: Sequence[Batch]) -> None:
    options = job.options
    how = _how(options, source, parts)
    # For WebUI a LoRA is a part of the prompt.
    lora_word = f" <lora:{source.lora.stem}:{options.lora_scale:g}>" if source.lora else ""
    for batch in batches:
        prompts, seeds = [job.prompts[p] for p, _ in batch], [options.seed + number for _, number in batch]
        for (prompt, number), image in zip(batch, generate(parts, prompts, seeds, how), strict=True):
            info = png_info(
                job.prompts[prompt] + lora_word,
                options.negative_prompt,
                {
                    "Steps": how.inference_steps,
                    "Sampler": samplers.webui_name(parts.sampler),
                    "CFG scale": f"{how.guidance_scale:g}",
                    "Seed": options.seed + number,
                    "Size": f"{how.size[1]}x{how.size[0]}",
                    "Model": source.title,
                },
            )
            with _writing():
                writing.write_png(job.folder(source) / image_name(prompt, number), image, info)


def _how(options: Options, source: Source, parts: Parts) -> GenerationSettings:
    side = options.resolution or parts.native_resolution
    return GenerationSettings(
        (options.height or side, options.width or side),
        options.num_inference_steps,
        options.guidance_scale,
        options.sample_batch_size,
        source.spec.prompt_chunks,
        options.negative_prompt,
    )


def png_info(prompt: str, negative: str, values: Mapping[str, object]) -> PngInfo:
    """What an image says of itself: the text `parameters`, by which WebUI fills in its fields again.

    As AUTOMATIC1111's WebUI writes it (modules/infotext_utils.py): the prompt, a line with the negative prompt, and a
    line of `Name: value` pairs, in which a value with a comma, a colon or a line end is quoted as in JSON.
    """

    def quoted(value: str) -> str:
        return json.dumps(value, ensure_ascii=False) if re.search(r"[,\n:]", value) else value

    pairs = ", ".join(f"{name}: {quoted(str(value))}" for name, value in values.items())
    lines = [prompt, *([f"Negative prompt: {negative}"] if negative else []), pairs]
    info = PngInfo()
    info.add_text("parameters", "\n".join(lines))
    return info


@contextmanager
def _writing() -> Iterator[None]:
    """Raises JobError (73) for what keeps the folder from being written."""
    try:
        yield
    except OSError as error:
        found = f"{shown(error.filename or 'the folder')} cannot be written ({error.strerror or error})"
        raise JobError(bad_output("--output", found, "Name a folder that can be written.")) from error
