"""What every stage of a run knows: its settings, processes and folders, and whether it has to stop."""

from __future__ import annotations

from dataclasses import dataclass

from sdjob.output.layout import OutputLayout
from sdjob.settings.run_spec import RunSpec
from sdtrain.runtime.distributed import World
from sdtrain.runtime.stop import Stopped, StopRequest


@dataclass(frozen=True)
class RunContext:
    """A run between its resolved settings and its first step."""

    spec: RunSpec
    world: World
    layout: OutputLayout
    stop: StopRequest
    first_step: int = 0  # the step of the checkpoint that the run resumes from

    def end_if_stopped(self) -> None:
        """Raise Stopped on every rank if one of them was asked to stop. Collective."""
        if self.world.any(bool(self.stop)):
            raise Stopped(self.first_step)
