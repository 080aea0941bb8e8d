"""Parallel strategies by the names that users type; each module is imported only when chosen.

Start reading: base.py, then ddp.py.
May import: torch, sdjob, sdtrain.optim, sdtrain.checkpoint; colossalai*.py also Colossal-AI.
"""

from __future__ import annotations

from importlib import import_module

import torch

from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec
from sdtrain.strategies.base import Strategy


def create(spec: RunSpec, device: torch.device, world_size: int) -> Strategy:
    """The strategy that a run asks for; raises JobError (69) where its package does not fit."""
    module = import_module(f"sdtrain.strategies.{PLUGINS[spec.plugin].module}")
    strategy: Strategy = module.create(spec, device, world_size)
    return strategy
