"""Plain PyTorch: one process, or data parallelism over many, in fp32, bf16 or fp16, on flat tensors.

With bf16 weights the model computes in bf16 throughout, as under FSDP; with fp32 weights autocast chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sdjob.settings.run_spec import RunSpec
from sdtrain.checkpoint import state_io
from sdtrain.checkpoint.staging import Staging
from sdtrain.runtime import devices
from sdtrain.strategies import updates
from sdtrain.strategies.base import (
    COMPUTE_DTYPES,
    OptimSpec,
    scale_learning_rates,
    trainable_parameters,
)
from sdtrain.strategies.exchange import Gradients
from sdtrain.strategies.flat import Flat, named, norm_of
from sdtrain.strategies.shards import Shards


class Native:
    """Strategy of plugin none, torch_ddp and torch_ddp_fp16. Its shards are flat tensors, one for each learning rate.

    The model itself is called, not a wrapper.
    """

    model: nn.Module

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        self._device = device
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._ranks = dist.get_world_size() if dist.is_initialized() else 1
        self._dtype = COMPUTE_DTYPES.get(spec.mixed_precision)
        self._weights = torch.bfloat16 if spec.weights_dtype == "bf16" else torch.float32
        self._reduced = torch.bfloat16 if spec.reduce_dtype == "bf16" else torch.float32
        self._staging = Staging(device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype == torch.float16)

    def prepare(self, model: nn.Module, optim: OptimSpec) -> None:
        if self._device.type in devices.CHANNELS_LAST:
            for parameter in model.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        trained = trainable_parameters(model)
        self._flats: dict[str, Flat] = {}
        for group in optim.groups:
            if members := {name: p for name, p in trained.items() if name.startswith(group.prefix)}:
                self._flats[group.prefix] = Flat(members, self._weights)
        self._gradients = Gradients(self._flats.values(), ranks=self._ranks, dtype=self._reduced)
        self._update = updates.create(optim, self._flats)
        self._max_grad_norm = optim.max_grad_norm
        self.model = model
        if self._weights != torch.float32:
            _compute_in(self._weights, model)
        if self._ranks > 1:
            for master in self.masters().values():
                dist.broadcast(master, 0)
        self._refresh()

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        return self._gradients.accumulating(last)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        mixed = self._dtype is not None and self._weights == torch.float32
        with torch.autocast(self._device.type, self._dtype) if mixed else nullcontext():
            yield

    def backward(self, loss: torch.Tensor) -> None:
        # Divided here, so that the sums over the ranks are means without a pass over the gradients.
        torch.autograd.backward(self._scaler.scale(loss / self._ranks))
        self._gradients.end_pass()

    def step(self, factor: float) -> torch.Tensor:
        gradients = self._gradients.summed()
        self._update.give(gradients)
        optimizer = self._update.optimizer
        scale_learning_rates(optimizer.param_groups, factor)
        self._scaler.unscale_(optimizer)
        norm = norm_of(gradients)
        if self._max_grad_norm:
            torch._foreach_mul_(gradients, (self._max_grad_norm / (norm + 1e-6)).clamp(max=1))
        self._staging.before_change()
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self._gradients.reset()
        self._refresh()
        return norm

    def discard(self) -> None:
        self._gradients.reset()

    def finish(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self._gradients.free()
        del self._update

    def masters(self) -> dict[str, torch.Tensor]:
        return {name: flat.master for name, flat in self._flats.items()}

    def full_state(self, shards: Shards) -> dict[str, torch.Tensor]:
        return {name: view.cpu().contiguous() for name, view in named(self._flats, shards).items()}

    @contextmanager
    def applied(self, shards: Shards | None) -> Iterator[None]:
        """Without a copy of the masters: in fp32 the model's parameters become views of the shards."""
        if shards is None:
            yield
            return
        self._use(shards)
        try:
            yield
        finally:
            self._use(self.masters())

    def _use(self, shards: Shards) -> None:
        for name, flat in self._flats.items():
            flat.use(shards[name])

    def _refresh(self) -> None:
        for flat in self._flats.values():
            flat.refresh()

    def writer(self, ema: Shards | None, *, background: bool) -> Callable[[Path], None]:
        if self._rank:  # the other ranks hold the same values
            return lambda folder: None
        tables = self._staging.copies(self._tables(ema)) if background else self._tables(ema)
        optimizer = self._update.state(tables, copied=background)
        write = partial(
            state_io.save_whole,
            master=named(self._flats, tables["master"]),
            ema=named(self._flats, tables["ema"]) if ema else {},
            optimizer=optimizer,
            scaler=self._scaler.state_dict(),
        )
        return partial(self._staging.write, write) if background else write

    def load(self, folder: Path, ema: Shards | None) -> None:
        scaler = self._update.load(folder, self._tables(ema))
        if scaler and self._scaler.is_enabled():  # empty where the run that saved was not fp16
            self._scaler.load_state_dict({**self._scaler.state_dict(), **scaler})
        self._refresh()

    def _tables(self, ema: Shards | None) -> state_io.Tables:
        return state_io.tables(self.masters(), self._update.tables(), ema)


def _compute_in(dtype: torch.dtype, model: nn.Module) -> None:
    """Convert the frozen weights, and from now on the floating-point inputs of every call."""
    for parameter in model.parameters():
        parameter.data = _converted(parameter.data, dtype)
    model.register_forward_pre_hook(lambda _, inputs: _converted(inputs, dtype))


def _converted(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _converted(item, dtype) for key, item in value.items()}
    return tuple(_converted(item, dtype) for item in value) if isinstance(value, tuple) else value


create = Native
