"""Everything that the steps of a run need, in one value."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from sdjob.settings.run_spec import RunSpec
from sdtrain.architectures.base import Parts
from sdtrain.context import RunContext
from sdtrain.data.sampling import BatchShape
from sdtrain.data.streams import StreamSet
from sdtrain.model.compilation import LossFunction
from sdtrain.objective.diffusion import loss_of
from sdtrain.optim.ema import Ema
from sdtrain.reporting.tracker import Tracker
from sdtrain.runtime.distributed import World
from sdtrain.strategies.base import Strategy
from sdtrain.validation.held_out_images import HeldOut


@dataclass(frozen=True)
class Training:
    """A run that is ready for its steps."""

    context: RunContext
    parts: Parts
    examples: StreamSet
    strategy: Strategy
    ema: Ema | None
    tracker: Tracker
    held_out: HeldOut | None
    loss_of: LossFunction = loss_of

    @property
    def spec(self) -> RunSpec:
        return self.context.spec

    @property
    def world(self) -> World:
        return self.context.world

    @property
    def shape(self) -> BatchShape:
        spec = self.spec
        return BatchShape(spec.train_batch_size, spec.gradient_accumulation_steps, self.world.size)

    @property
    def validates(self) -> bool:
        return bool(self.spec.validation_prompts or self.held_out)

    @property
    def num_examples(self) -> int:
        return len(self.examples.streams[0].images)

    @property
    def ema_shards(self) -> Mapping[str, torch.Tensor] | None:
        return self.ema.shards if self.ema else None

    @property
    def final_weights(self) -> Mapping[str, torch.Tensor]:
        """This rank's shard of the weights to export: the EMA if there is one, otherwise the masters."""
        return self.ema_shards or self.strategy.masters()

    def with_final_weights(self) -> AbstractContextManager[None]:
        """Inside, the model computes with these weights. Entering and leaving is collective."""
        return self.strategy.applied(self.ema_shards)
