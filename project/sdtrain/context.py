"""Everything that the steps of a run need, in one value."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from sdjob.output.layout import OutputLayout
from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Parts
from sdtrain.data.sampling import BatchShape
from sdtrain.data.streams import StreamSet
from sdtrain.optim.ema import Ema
from sdtrain.reporting.tracker import Tracker
from sdtrain.runtime.distributed import World
from sdtrain.runtime.stop import StopRequest
from sdtrain.strategies.base import Strategy
from sdtrain.validation.held_out_images import HeldOut


@dataclass(frozen=True)
class Training:
    """A run that is ready to take its steps."""

    spec: RunSpec
    world: World
    layout: OutputLayout
    shape: BatchShape
    parts: Parts
    examples: StreamSet
    strategy: Strategy
    ema: Ema | None
    tracker: Tracker
    stop: StopRequest
    held_out: HeldOut | None = None

    @property
    def num_examples(self) -> int:
        return len(self.examples.streams[0].images)

    @property
    def best(self) -> Mapping[str, torch.Tensor]:
        """This rank's share of the weights that are exported and drawn with: the EMA's where there is one."""
        return self.ema.shards if self.ema else self.strategy.masters()

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, images can be drawn with these weights. Entering and leaving is collective."""
        return self.strategy.applied(self.ema.shards if self.ema else None)
