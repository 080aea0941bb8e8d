"""Plain PyTorch: one process, or DistributedDataParallel over many, in fp32, bf16 or fp16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sdjob.output.checkpoint_files import EMA, MODEL, OPTIMIZER
from sdjob.settings.run_spec import RunSpec
from sdtrain.checkpoint import state_io
from sdtrain.optim import optimizers
from sdtrain.strategies.base import COMPUTE_DTYPES, OptimSpec, clipped_step, grouped, trainable_parameters
from sdtrain.strategies.shards import Shards, overwrite, replaced, whole


class Native:
    """Strategy of plugin none, torch_ddp and torch_ddp_fp16."""

    model: nn.Module

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        self._device = device
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._dtype = COMPUTE_DTYPES.get(spec.mixed_precision)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype == torch.float16)

    def prepare(self, model: nn.Module, optim: OptimSpec) -> None:
        self._trained = trainable_parameters(model)
        self._max_grad_norm = optim.max_grad_norm
        self._optimizer = optimizers.build(optim, grouped(self._trained, optim))
        names = {parameter: name for name, parameter in self._trained.items()}
        self._names = [names[p] for group in self._optimizer.param_groups for p in group["params"]]
        self.model = model
        if dist.is_initialized() and dist.get_world_size() > 1:
            ids = [self._device.index] if self._device.index is not None else None
            self.model = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self._device.type, self._dtype) if self._dtype else nullcontext():
            yield

    def backward(self, loss: torch.Tensor) -> None:
        torch.autograd.backward(self._scaler.scale(loss))

    def step(self, factor: float) -> torch.Tensor:
        return clipped_step(self._optimizer, self._scaler, self._trained, self._max_grad_norm, factor)

    def discard(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def masters(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self._trained.items()}

    def full_state(self, shards: Shards) -> dict[str, torch.Tensor]:
        return {name: shard.cpu().contiguous() for name, shard in shards.items()}

    def applied(self, shards: Shards | None) -> AbstractContextManager[None]:
        return replaced(self.masters, shards, refresh=lambda: None)

    def writer(self, ema: Shards | None, *, background: bool) -> Callable[[Path], None]:
        if self._rank:  # the other ranks hold the same values
            return lambda folder: None
        state = {
            "model": self.masters(),
            "ema": dict(ema) if ema else None,
            "optimizer": self._optimizer.state_dict(),
            "names": self._names,
            "scaler": self._scaler.state_dict(),
        }
        return partial(_write, _copied(state) if background else state)

    def load(self, folder: Path, ema: Shards | None) -> None:
        groups = self._optimizer.state_dict()["param_groups"]
        if state_io.is_sharded(folder):
            state = self._from_shards(folder, ema)
        else:
            overwrite(self.masters(), load_file(folder / MODEL))
            overwrite(ema or {}, load_file(folder / EMA) if ema else {})
            state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
            groups = optimizers.groups_to_resume(groups, state["optimizer"]["param_groups"])
        self._optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        if state["scaler"]:  # empty where the run that saved was not fp16
            self._scaler.load_state_dict(self._scaler.state_dict() | state["scaler"])

    def _from_shards(self, folder: Path, ema: Shards | None) -> dict[str, Any]:
        """The state that `save` would have written, from another strategy's shards; overwrites the weights."""
        masters = self.masters()
        tables = state_io.tables(
            masters,
            {key: {n: torch.zeros_like(m) for n, m in masters.items()} for key in state_io.ADAM_STATE},
            ema,
        )
        numbers = state_io.load(folder, tables, {name: whole(m.shape) for name, m in masters.items()})
        states = {
            index: {
                "step": torch.tensor(float(numbers.updates)),
                **{key: tables[key][name] for key in state_io.ADAM_STATE},
            }
            for index, name in enumerate(self._names)
        }
        return {"optimizer": {"state": states}, "scaler": dict(numbers.scaler)}


def _write(state: dict[str, Any], folder: Path) -> None:
    for name, file in (("model", MODEL), ("ema", EMA)):
        if state[name]:
            save_file({key: weight.cpu().contiguous() for key, weight in state[name].items()}, folder / file)
    torch.save({name: state[name] for name in ("optimizer", "names", "scaler")}, folder / OPTIMIZER)


def _copied(value: Any) -> Any:
    """The same nested values, with every tensor copied to the host."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


create = Native
