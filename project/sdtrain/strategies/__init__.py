"""Parallel strategies by the names that users type; each module is imported only when chosen."""

from __future__ import annotations

from importlib import import_module

import torch

from sdjob.problem import JobError, hardware
from sdtrain.strategies.base import Strategy

_MODULES = {
    "none": "sdtrain.strategies.native",
    "torch_ddp": "sdtrain.strategies.native",
    "torch_ddp_fp16": "sdtrain.strategies.native",
}


def create(plugin: str, precision: str, device: torch.device, world_size: int) -> Strategy:
    """The strategy that a plugin's name means."""
    if plugin not in _MODULES:
        raise JobError(hardware("plugin", f"{plugin} is not part of this version", "Use plugin=torch_ddp."))
    strategy: Strategy = import_module(_MODULES[plugin]).create(precision, device, world_size)
    return strategy
