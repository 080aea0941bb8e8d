"""The same job for another platform: a module and a line of TARGETS each; pure functions from a plan to text.

Start reading: task.py, which every target starts from.
May import: sdjob, sdlaunch.plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sdjob.problems import Problem, bad_setting
from sdlaunch.emit import compose, docker, kubernetes, skypilot, slurm
from sdlaunch.emit.kubernetes import KINDS
from sdlaunch.emit.task import Task


@dataclass(frozen=True)
class Target:
    """How a job is written for one platform."""

    render: Callable[[Task], str]
    assigns_ranks: bool = False  # the platform sets the rank of each node and the address of node 0 itself


TARGETS: Mapping[str, Target] = {
    "docker": Target(docker.render),
    "compose": Target(compose.render),
    "kubernetes": Target(kubernetes.render, assigns_ranks=True),
    "slurm": Target(slurm.render, assigns_ranks=True),
    "skypilot": Target(skypilot.render, assigns_ranks=True),
}


def problems_of(target: str, kind: str) -> list[Problem]:
    """What is wrong with the name of a target, and with --kind."""
    table = (("emit", target, "target ", TARGETS), ("--kind", kind, "", KINDS))
    return [
        bad_setting(subject, f"{label}{value!r}", f"Use one of {', '.join(known)}.")
        for subject, value, label, known in table
        if value not in known
    ]
