"""The sums of a job, which a person can check: batch, length, checkpoints, memory."""

from __future__ import annotations

from sdjob.dataset import validation_split
from sdjob.formatting import counted, in_units
from sdjob.settings import steps
from sdlaunch.preflight import caches, device_memory, disk_space
from sdlaunch.preflight.job import Job


def lines(job: Job) -> tuple[str, ...]:
    """The batch, the epochs, the checkpoints: as sums that a person can check."""
    spec, total = job.spec, steps.global_batch(job.spec, job.cluster.world_size)
    found = [
        f"batch: {spec.train_batch_size} per device × {spec.gradient_accumulation_steps} accumulated × "
        f"{counted(job.cluster.world_size, 'process', 'processes')} = {counted(total, 'image')} a step"
    ]
    if job.contents.data:
        images = sum(each.num_examples for each in job.contents.data)
        examples = sum(validation_split.trained_on(spec, each.num_examples) for each in job.contents.data)
        if held_out := images - examples:
            found.append(
                f"validation: {held_out} of {images} images held out, "
                f"{min(held_out, spec.max_validation_samples)} of them looked at"
            )
        found.append(
            f"length: {examples} images / {total} = {examples / total:.4g} steps an epoch; "
            f"{spec.max_train_steps} steps = {spec.max_train_steps * total / examples:.4g} epochs"
        )
    size = disk_space.sizes(spec, job.contents.model) if job.contents.model else None
    if size is not None:
        kept = disk_space.kept(spec)
        found.append(
            f"checkpoints: {kept} kept × {in_units(size.checkpoint)} = {in_units(kept * size.checkpoint)}"
        )
    if kept_ready := caches.of(job):
        found.append(f"caches: {'; '.join(map(str, kept_ready))}")
    if need := device_memory.needed(job):
        have = device_memory.each(job)
        there = f"; {in_units(have)} there" if have else ""
        found.append(f"memory: at least {in_units(need.total)} a process{there}: {device_memory.spelt(need)}")
    return tuple(found)
