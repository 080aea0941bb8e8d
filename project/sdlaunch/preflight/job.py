"""A job as the checks look at it."""

from __future__ import annotations

from dataclasses import dataclass

from sdjob.problems import Problem
from sdjob.settings.compatibility import Topology
from sdjob.settings.run_spec import RunSpec
from sdlaunch.cluster.devices import Devices
from sdlaunch.cluster.resolve import Cluster
from sdlaunch.inputs.contents import Contents
from sdlaunch.inputs.mounts import Mounts


@dataclass(frozen=True)
class Note:
    """What a check has learned and the plan shows, for nothing is wrong with it."""

    text: str


# What keeps the job from running, the sentence of a warning, or a line of the plan.
Finding = Problem | str | Note


@dataclass(frozen=True)
class Job:
    """What the checks look at."""

    spec: RunSpec
    cluster: Cluster
    devices: Devices
    mounts: Mounts
    contents: Contents
    until: float  # time.monotonic() when the checks must have an answer
    patience: float  # seconds that they had for it
    has_script: bool = False  # what a script reads, and how much memory it needs, only its author knows
    packages_come: bool = False  # what is missing is installed before the job runs

    @property
    def topology(self) -> Topology:
        return Topology(self.devices.type, self.cluster.world_size, self.devices.bf16)
