"""What a job needs in memory and on disk against what is there, and the same arithmetic as lines of the plan."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdjob.automatic import example_sizes, machine
from sdjob.automatic.example_sizes import CacheEntries
from sdjob.dataset import validation_split
from sdjob.failure_patterns import DEVICE_MEMORY, HOST_MEMORY
from sdjob.formatting import counted, in_units
from sdjob.model import memory_estimate
from sdjob.model.memory_estimate import Estimate
from sdjob.model.single_file import converted_folder
from sdjob.output.layout import OutputLayout, step_folders
from sdjob.problems import bad_output, no_hardware
from sdjob.settings import steps
from sdlaunch.preflight import lighter_settings
from sdlaunch.preflight.job import Finding, Job
from sdlaunch.preflight.leftovers import not_writable

_CLOSE = 0.9  # fraction of the memory beyond which the rest may be too little for what is not estimated
_FEWER = (
    "Mount a larger volume, keep fewer (checkpoints_total_limit=1), or make them less often "
    "(checkpointing_steps)."
)


def lines(job: Job) -> Iterator[str]:
    """Batch, length, checkpoints, caches and memory, as arithmetic that a person can check."""
    spec, total = job.spec, steps.global_batch(job.spec, job.cluster.world_size)
    yield (
        f"batch: {spec.train_batch_size} per device × {spec.gradient_accumulation_steps} accumulated × "
        f"{counted(job.cluster.world_size, 'process')} = {counted(total, 'image')} per step"
    )
    if job.contents.data:
        images = sum(each.num_examples for each in job.contents.data)
        examples = job.examples
        if held_out := images - examples:
            used = min(held_out, spec.max_validation_samples)
            yield f"validation: {held_out} of {images} images held out, {used} of them used"
        yield (
            f"length: {counted(examples, 'image')} / {total} = {examples / total:.4g} steps per epoch; "
            f"{counted(spec.max_train_steps, 'step')} = {spec.max_train_steps * total / examples:.4g} epochs"
        )
    if size := memory_estimate.output_sizes(spec, job.contents.model) if job.contents.model else None:
        kept = memory_estimate.checkpoints_kept(spec)
        yield f"checkpoints: {kept} kept × {in_units(size.checkpoint)} = {in_units(kept * size.checkpoint)}"
    if caches := _caches(job):
        yield f"caches: {'; '.join(map(str, caches))}"
    if need := _needed(job):
        available = _memory(job)
        there = f"; {in_units(available)} available" if available else ""
        yield f"memory: at least {in_units(need.total)} per process{there}: {need}"


# --- memory ------------------------------------------------------------------------------------------


def device_memory(job: Job) -> list[Finding]:
    """The memory of each device, or of the host for processes on a CPU: nothing is refused on a guess."""
    need, available = _needed(job), _memory(job)
    if need is None or available is None or need.total <= _CLOSE * available:
        return []
    on_cpu = job.devices.type == "cpu"
    where = "of the host for each process" if on_cpu else f"on each {job.devices.type} device"
    found = f"at least {in_units(need.total)} needed {where} ({need}), and {in_units(available)} available"
    settings = lighter(job)
    remedy = f"Settings that would fit: {'; '.join(settings)}" if settings else "Use devices with more memory"
    if need.total > available:
        return [no_hardware(HOST_MEMORY if on_cpu else DEVICE_MEMORY, found, f"{remedy}.")]
    return [f"memory: {found}: it may not be enough. {remedy}."]


def host_memory(job: Job) -> list[Finding]:
    """Caches in memory, of which each process of this node has its own."""
    caches = [entries for entries in _caches(job) if entries.where == "memory"]
    available, processes = machine.host_memory(), job.cluster.nproc_per_node
    least = processes * sum(entries.least * entries.size for entries in caches)
    most = processes * sum(entries.total for entries in caches)
    if available is None or most <= _CLOSE * available:
        return []
    largest = max(caches, key=lambda entries: entries.total)
    found = (
        f"{in_units(most)} of the host's memory for {counted(processes, 'process')}: {', '.join(map(str, caches))}; "
        f"{in_units(available)} available"
    )
    remedy = f"Use {largest.setting}=disk, or no."
    if least > available:
        return [no_hardware(largest.setting, found, remedy)]
    return [f"{largest.setting}: {found}: it may not be enough. {remedy}"]


def lighter(job: Job) -> list[str]:
    """Settings that need clearly less memory than this job, and no more than there is."""
    need, available = _needed(job), _memory(job)
    if need is None or job.contents.model is None:
        return []
    limit = min(need.total, available or need.total)
    return lighter_settings.fitting(job.spec, job.contents.model, job.topology, limit)


def _needed(job: Job) -> Estimate | None:
    if job.contents.model is None or job.has_script:
        return None
    return memory_estimate.estimate(job.spec, job.contents.model, job.topology)


def _memory(job: Job) -> int | None:
    """Bytes that each process can have: its device's, or its fraction of the host's; None: not known."""
    if job.devices.memory is None or job.devices.type != "cpu":
        return job.devices.memory
    return job.devices.memory // job.cluster.nproc_per_node


def _caches(job: Job) -> list[CacheEntries]:
    """The caches of a job, where its model and its dataset are known."""
    model, data = job.contents.model, job.contents.dataset
    if model is None or data is None or job.has_script:
        return []
    images = validation_split.trained_on(job.spec, data.num_examples)
    return list(example_sizes.cache_entries(job.spec, model, images, job.topology))


# --- disk --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Demand:
    """Bytes that will be written somewhere below a folder: at least, and at most."""

    subject: str  # the setting that names the folder
    folder: Path
    least: int
    most: int
    what: str
    remedy: str
    written: Callable[[], int] = lambda: 0  # bytes that are there already; counted only where space is short


def disk_space(job: Job) -> list[Finding]:
    """Free space of each volume for everything that is written there together."""
    by_volume: dict[int, tuple[Path, int, list[_Demand]]] = {}
    closed: dict[Path, Finding] = {}
    for demand in _demands(job):
        existing, volume, free = free_at(demand.folder)
        is_open = existing.is_dir() and (existing == demand.folder or os.access(existing, os.W_OK))
        if demand.subject == "cache_dir" and not is_open:
            found = (
                f"{existing}: {not_writable(existing)}" if existing.is_dir() else f"{existing} is no folder"
            )
            remedy = (
                "Set cache_dir to a writable folder, or leave it empty: the caches are then in OUTPUT_DIR."
            )
            closed[existing] = bad_output("cache_dir", found, remedy)
        by_volume.setdefault(volume, (existing, free, []))[2].append(demand)
    short = (finding for of_volume in by_volume.values() for finding in _judged(*of_volume))
    return [*closed.values(), *short]


def _judged(existing: Path, free: int, demands: Sequence[_Demand]) -> Iterator[Finding]:
    if free >= sum(demand.most for demand in demands):
        return
    written = sum(demand.written() for demand in demands)
    least = sum(demand.least for demand in demands) - written
    most = sum(demand.most for demand in demands) - written
    largest = max(demands, key=lambda demand: demand.least)
    what = ", and ".join(demand.what for demand in demands)
    there = f"{in_units(free)} free at {existing}"
    if free < least:
        yield bad_output(largest.subject, f"{there}, {in_units(least)} needed: {what}", largest.remedy)
    elif free < most:
        yield f"{largest.subject}: {there}, and up to {in_units(most)} needed: {what}"


def _demands(job: Job) -> Iterator[_Demand]:
    spec, model, output = job.spec, job.contents.model, job.mounts.output
    if size := memory_estimate.output_sizes(spec, model) if model else None:
        existing = [folder.step for folder in step_folders(OutputLayout(output)) if folder.defect is None]
        more = memory_estimate.checkpoints_to_come(spec, existing)
        needed = size.checkpoint * more + size.result
        checkpoints = f"{counted(more, 'checkpoint')} of {in_units(size.checkpoint)}"
        what = f"{checkpoints}, and the result of {in_units(size.result)}"
        yield _Demand("OUTPUT_DIR", output, needed, needed, what, _FEWER)
    if job.has_script:
        return
    subject = "cache_dir" if spec.cache_dir else "OUTPUT_DIR"
    larger = "Set cache_dir to a folder on a larger volume"
    caches = OutputLayout(output).cache(spec.cache_dir)
    if model and model.single:
        folder = converted_folder(model.single, caches)
        if not folder.is_dir():
            copied = sum(part.num_bytes for part in model.parts.values())
            what = f"the model as a folder, converted from the single file, of {in_units(copied)}"
            yield _Demand(subject, folder, copied, copied, what, f"{larger}.")
    for each in _caches(job):
        if each.where == "disk":
            least, remedy = each.least * each.size, f"{larger}, or leave {each.setting}=no."
            folder = caches / each.name
            yield _Demand(subject, folder, least, each.total, str(each), remedy, _written(folder, each))


def _written(folder: Path, entries: CacheEntries) -> Callable[[], int]:
    """Entries of other data may be there too, but at most the bytes needed are counted."""
    return lambda: min(sum(path.stat().st_size for path in folder.glob("*.safetensors")), entries.total)


def free_at(path: Path) -> tuple[Path, int, int]:
    """The nearest existing folder upwards, the number of its volume, and the free bytes. No look before asking: the
    check of writing makes and removes the output folder meanwhile."""
    for folder in (path, *path.parents):
        try:
            return folder, folder.stat().st_dev, shutil.disk_usage(folder).free
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
