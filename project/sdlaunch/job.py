"""A job as the checks look at it."""

from __future__ import annotations

from dataclasses import dataclass

from sdjob.compat import Topology
from sdjob.problem import Problem
from sdjob.spec import RunSpec
from sdlaunch.cluster import Cluster
from sdlaunch.devices import Devices
from sdlaunch.mounts import Contents, Mounts

Finding = Problem | str  # what keeps the job from running, or the sentence of a warning


@dataclass(frozen=True)
class Job:
    """What the checks look at."""

    spec: RunSpec
    cluster: Cluster
    devices: Devices
    mounts: Mounts
    contents: Contents
    has_script: bool = False  # what a script reads, and how much memory it needs, only its author knows

    packages_come: bool = False  # what is missing is installed before the job runs

    @property
    def topology(self) -> Topology:
        return Topology(self.devices.kind, self.cluster.world_size, self.devices.bf16)
