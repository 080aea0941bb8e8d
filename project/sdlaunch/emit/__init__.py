"""The same job for another platform: a module and a line of TARGETS each; pure functions from a plan to text.

Start reading: task.py, which every target starts from.
May import: sdjob, sdlaunch.plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sdjob.problems import Problem, bad_setting
from sdlaunch.emit import compose, docker, kubernetes, skypilot, slurm
from sdlaunch.emit.task import Task

Render = Callable[[Task], str]


@dataclass(frozen=True)
class Target:
    """How a job is written for one platform."""

    render: Render
    assigns_ranks: bool = False  # the platform sets the rank of each node and the address of node 0 itself
    kinds: Mapping[str, Render] = field(default_factory=dict)  # what --kind=NAME chooses instead of `render`


TARGETS: Mapping[str, Target] = {
    "docker": Target(docker.render),
    "compose": Target(compose.render),
    "kubernetes": Target(
        kubernetes.train_job,
        assigns_ranks=True,
        kinds={"trainjob": kubernetes.train_job, "job": kubernetes.indexed_job},
    ),
    "slurm": Target(slurm.render, assigns_ranks=True),
    "skypilot": Target(skypilot.render, assigns_ranks=True),
}


def problems_of(name: str, kind: str | None) -> list[Problem]:
    """What is wrong with the name of a target, and with --kind (None: not given)."""
    target = TARGETS.get(name)
    if target is None:
        return [bad_setting("emit", f"target {name!r}", f"Use one of {', '.join(TARGETS)}.")]
    if kind is None or kind in target.kinds:
        return []
    remedy = f"Use one of {', '.join(target.kinds)}." if target.kinds else "Leave it out."
    return [bad_setting("--kind", f"{kind!r} for {name}", remedy)]
