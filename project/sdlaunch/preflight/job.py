"""A job as the checks look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sdjob.dataset import validation_split
from sdjob.problems import Problem
from sdjob.settings.compatibility import Topology
from sdjob.settings.run_spec import RunSpec
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.cluster.devices import Devices
from sdlaunch.inputs.contents import Contents
from sdlaunch.inputs.mounts import Mounts


@dataclass(frozen=True)
class Note:
    """A fact that a check found and the plan shows; nothing is wrong with it."""

    text: str


# A problem, the sentence of a warning, or a line of the plan.
Finding = Problem | str | Note


@dataclass(frozen=True)
class Job:
    """What the checks look at."""

    spec: RunSpec
    cluster: Cluster
    devices: Devices
    mounts: Mounts
    contents: Contents
    until: float  # time.monotonic() at which the checks are abandoned
    patience: float  # seconds until then
    has_script: bool = False  # only its author knows what a script reads and how much memory it needs
    publish: str | None = None  # where the result goes
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)  # of the job, with its secrets
    packages_come: bool = False  # missing packages are installed before the job runs

    @property
    def topology(self) -> Topology:
        return Topology(self.devices.type, self.cluster.world_size, self.devices.bf16)

    @property
    def examples(self) -> int:
        """Images to train on, of all subjects; 0: not known."""
        return sum(validation_split.trained_on(self.spec, each.num_examples) for each in self.contents.data)
