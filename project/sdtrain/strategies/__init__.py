"""Parallel strategies by the names of sdjob.settings.plugins; each module is imported only when chosen.

Start reading: base.py, then ddp.py.
May import: torch, sdjob, sdtrain.checkpoint, sdtrain.optim, sdtrain.runtime; colossalai in colossalai.py alone.
"""

from __future__ import annotations

from importlib import import_module

import torch

from sdjob.settings.plugins import PLUGINS, optimizers_of
from sdjob.settings.run_spec import RunSpec
from sdtrain.strategies.base import Strategy


def create(spec: RunSpec, device: torch.device) -> Strategy:
    """The strategy of a run; raises JobError (69) if its package is missing or incompatible.

    Refuses an optimizer that the strategy would replace by its own; sdjob.settings.compatibility has said so before.
    """
    if spec.optimizer not in optimizers_of(spec.plugin):
        raise ValueError(f"{spec.plugin} does not train with {spec.optimizer}")
    module = import_module(f"sdtrain.strategies.{PLUGINS[spec.plugin].module}")
    strategy: Strategy = module.create(spec, device)
    return strategy
