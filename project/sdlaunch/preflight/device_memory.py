"""The memory of the devices against the least that a job needs there."""

from __future__ import annotations

from sdjob.formatting import in_units
from sdjob.model import memory_estimate
from sdjob.problems import no_hardware
from sdlaunch.cluster import devices
from sdlaunch.preflight import caches
from sdlaunch.preflight.job import Finding, Job

_CLOSE = 0.9  # share of the memory from which on the rest may be too little for what is not reckoned


def each(job: Job) -> int | None:
    """Bytes that each process can have: its device's, or its share of the host's; None: not known."""
    if job.devices.memory is None or job.devices.type != "cpu":
        return job.devices.memory
    return job.devices.memory // job.cluster.nproc_per_node


def needed(job: Job) -> memory_estimate.Estimate | None:
    if job.contents.model is None or job.has_script:
        return None
    return memory_estimate.estimate(job.spec, job.contents.model, job.topology)


def would_fit(job: Job) -> list[str]:
    """Settings that need clearly less memory than this job, and no more than there is."""
    need, have = needed(job), each(job)
    if need is None or job.contents.model is None:
        return []
    return memory_estimate.fitting(
        job.spec, job.contents.model, job.topology, min(need.total, have or need.total)
    )


def findings(job: Job) -> list[Finding]:
    """The least that the job needs against what there is: nothing is refused on a guess."""
    return [*_of_devices(job), *_of_caches(job)]


def _of_caches(job: Job) -> list[Finding]:
    """Caches in memory: each process of this node has its own."""
    kept = [entries for entries in caches.of(job) if entries.where == "memory"]
    have, processes = devices.host_memory(), job.cluster.nproc_per_node
    least = processes * sum(entries.least * entries.size for entries in kept)
    most = processes * sum(entries.most * entries.size for entries in kept)
    if have is None or most <= _CLOSE * have:
        return []
    largest = max(kept, key=lambda entries: entries.most * entries.size)
    found = (
        f"{in_units(most)} of the host's memory for {processes} processes: {', '.join(map(str, kept))}; "
        f"{in_units(have)} there"
    )
    remedy = f"Use {largest.setting}=disk, or no."
    if least > have:
        return [no_hardware(largest.setting, found, remedy)]
    return [f"{largest.setting}: {found}: it may not be enough. {remedy}"]


def _of_devices(job: Job) -> list[Finding]:
    need, have = needed(job), each(job)
    if need is None or have is None or need.total <= _CLOSE * have:
        return []
    where = (
        "of the host for each process" if job.devices.type == "cpu" else f"on each {job.devices.type} device"
    )
    found = f"at least {in_units(need.total)} needed {where} ({spelt(need)}), and {in_units(have)} there"
    settings = would_fit(job)
    remedy = f"Settings that would fit: {'; '.join(settings)}" if settings else "Use devices with more memory"
    if need.total > have:
        return [no_hardware("memory", found, f"{remedy}.")]
    return [f"memory: {found}: it may not be enough. {remedy}."]


def spelt(need: memory_estimate.Estimate) -> str:
    """weights 3.44 GB + gradients 3.44 GB + …"""
    return " + ".join(f"{name} {in_units(size)}" for name, size in need.parts().items())
