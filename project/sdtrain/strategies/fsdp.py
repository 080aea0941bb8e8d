"""FSDP2: PyTorch itself shards weights, gradients and optimizer state, on any device with collectives.

`fully_shard` (torch.distributed.fsdp); ZeRO: Rajbhandari et al. 2020, arXiv:1910.02054.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from sdjob.settings.run_spec import RunSpec
from sdtrain.checkpoint import state_io
from sdtrain.model.compilation import blocks
from sdtrain.optim import optimizers
from sdtrain.strategies.base import (
    COMPUTE_DTYPES,
    OptimSpec,
    grouped,
    scale_learning_rates,
    trainable_parameters,
)
from sdtrain.strategies.shards import Range, Shards, gather_whole, replaced


class Fsdp:
    """Strategy of plugin fsdp: the shards are fp32 masters, gathered in the precision of the run."""

    model: nn.Module

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        self._device = device
        self._reshard = spec.reshard_after_forward
        self._offload = spec.cpu_offload
        self._dtype = COMPUTE_DTYPES.get(spec.mixed_precision)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype == torch.float16)

    def prepare(self, model: nn.Module, optim: OptimSpec) -> None:
        self._shard(model)
        self.model = model
        self._trained = trainable_parameters(model)
        self._ranges = {name: _range(p) for name, p in self._trained.items()}
        self._savers = state_io.group_of_savers()
        self._max_grad_norm = optim.max_grad_norm
        self._optimizer = optimizers.build(optim, grouped(self._trained, optim))
        for p in self._trained.values():
            self._optimizer.state[p] = {
                "step": torch.zeros((), device=_local(p).device),
                **{key: torch.zeros_like(p) for key in state_io.ADAM_STATE},
            }

    def _shard(self, model: nn.Module) -> None:
        """Shard each part of the model block by block, so that one block at a time is whole.

        Each part is an FSDP root, so that images can be generated with the U-Net alone.
        """
        policy: Any = MixedPrecisionPolicy(param_dtype=self._dtype, reduce_dtype=torch.float32)
        pinned = self._device.type == "cuda"
        options: dict[str, Any] = {
            "mesh": init_device_mesh(self._device.type, (dist.get_world_size(),)),
            "reshard_after_forward": self._reshard,
            "mp_policy": policy,
            "offload_policy": CPUOffloadPolicy(pin_memory=pinned) if self._offload else OffloadPolicy(),
        }
        for part in model.children():
            for block in blocks(part):
                fully_shard(block, **options)
            fully_shard(part, **options)
        self._sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        for module in self._sharded:
            module.set_requires_gradient_sync(last, recurse=False)
        yield

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()  # weights are gathered in the precision of the run, and inputs cast to it

    def backward(self, loss: torch.Tensor) -> None:
        torch.autograd.backward(self._scaler.scale(loss))

    def step(self, factor: float) -> torch.Tensor:
        optimizer, scaler = self._optimizer, self._scaler
        scale_learning_rates(optimizer.param_groups, factor)
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self._trained.values(), self._max_grad_norm or float("inf"))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return whole.to(self._device)  # that of offloaded gradients is in host memory

    def discard(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def finish(self) -> None:
        self.discard()
        self._optimizer.state.clear()

    def masters(self) -> dict[str, torch.Tensor]:
        return {name: _local(p) for name, p in self._trained.items()}

    def full_state(self, shards: Shards) -> dict[str, torch.Tensor]:
        return gather_whole(shards, self._ranges, self._device)

    @contextmanager
    def applied(self, shards: Shards | None) -> Iterator[None]:
        with replaced(self.masters, shards, refresh=lambda: None):
            for module in self._sharded:
                module.set_reshard_after_forward(False, recurse=False)
                module.unshard()
            try:
                yield
            finally:
                for module in self._sharded:
                    module.reshard()
                    module.set_reshard_after_forward(self._reshard, recurse=False)

    def writer(self, ema: Shards | None, *, background: bool) -> Callable[[Path], None]:
        step = next(iter(self._optimizer.state.values()))["step"]
        numbers = state_io.Numbers(int(step), self._scaler.state_dict())
        tables = self._tables(ema)
        return state_io.writer(tables, self._ranges, numbers, self._savers, background=background)

    def load(self, folder: Path, ema: Shards | None) -> None:
        numbers = state_io.load(folder, self._tables(ema), self._ranges)
        for state in self._optimizer.state.values():
            state["step"].fill_(numbers.updates)
        if numbers.scaler and self._scaler.is_enabled():
            self._scaler.load_state_dict(self._scaler.state_dict() | dict(numbers.scaler))

    def _tables(self, ema: Shards | None) -> dict[str, Shards]:
        adam = {
            key: {name: _local(self._optimizer.state[p][key]) for name, p in self._trained.items()}
            for key in state_io.ADAM_STATE
        }
        return state_io.tables(self.masters(), adam, ema)


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's rows, flat; a view."""
    assert isinstance(parameter, DTensor)
    local: torch.Tensor = parameter.to_local()
    return local.detach().view(-1)


def _range(parameter: nn.Parameter) -> Range:
    """FSDP shards along the first dimension, so that a rank's rows are one range of the flat tensor."""
    assert isinstance(parameter, DTensor)
    mesh, placements = parameter.device_mesh, parameter.placements
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
    row = parameter.shape[1:].numel()
    return Range(parameter.shape, offset[0] * row if offset else 0, torch.Size(shape).numel())


create = Fsdp
