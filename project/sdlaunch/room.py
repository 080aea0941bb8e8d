"""The memory of the devices against the least that a job needs there."""

from __future__ import annotations

from sdjob import memory
from sdjob.problem import hardware
from sdlaunch import space
from sdlaunch.job import Finding, Job

_CLOSE = 0.9  # share of the memory from which on the rest may be too little for what is not reckoned


def each(job: Job) -> int | None:
    """Bytes that each process can have: its device's, or its share of the host's; None: not known."""
    if job.devices.memory is None or job.devices.kind != "cpu":
        return job.devices.memory
    return job.devices.memory // job.cluster.nproc_per_node


def needed(job: Job) -> memory.Estimate | None:
    if job.contents.model is None or job.has_script:
        return None
    return memory.estimate(job.spec, job.contents.model, job.topology)


def would_fit(job: Job) -> list[str]:
    """Settings that need clearly less memory than this job, and no more than there is."""
    need, have = needed(job), each(job)
    if need is None or job.contents.model is None:
        return []
    return memory.fitting(job.spec, job.contents.model, job.topology, min(need.total, have or need.total))


def findings(job: Job) -> list[Finding]:
    """The least that the job needs against what there is: nothing is refused on a guess."""
    need, have = needed(job), each(job)
    if need is None or have is None or need.total <= _CLOSE * have:
        return []
    where = (
        "of the host for each process" if job.devices.kind == "cpu" else f"on each {job.devices.kind} device"
    )
    found = f"at least {space.in_units(need.total)} needed {where} ({spelt(need)}), and {space.in_units(have)} there"
    settings = would_fit(job)
    remedy = f"Settings that would fit: {'; '.join(settings)}" if settings else "Use devices with more memory"
    if need.total > have:
        return [hardware("memory", found, f"{remedy}.")]
    return [f"memory: {found}: it may not be enough. {remedy}."]


def spelt(need: memory.Estimate) -> str:
    """weights 3.44 GB + gradients 3.44 GB + …"""
    return " + ".join(f"{name} {space.in_units(size)}" for name, size in need.parts().items())
