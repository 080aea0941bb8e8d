"""Plain PyTorch: one process, or DistributedDataParallel over many, in fp32, bf16 or fp16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sdtrain.strategies import optimisers
from sdtrain.strategies.base import OptimSpec, grouped

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Native:
    """Strategy of plugin none, torch_ddp and torch_ddp_fp16."""

    model: nn.Module

    def __init__(self, precision: str, device: torch.device, world_size: int) -> None:
        self._device = device
        self._world_size = world_size
        self._dtype = _AUTOCAST.get(precision)
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def prepare(self, model: nn.Module, optim: OptimSpec) -> None:
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._max_grad_norm = optim.max_grad_norm or float("inf")
        self._optimizer = optimisers.build(optim, grouped(self._trained, optim))
        self.model = model
        if self._world_size > 1:
            ids = [self._device.index] if self._device.index is not None else None
            self.model = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            with self.model.no_sync():
                yield
        else:
            yield

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self._device.type, self._dtype) if self._dtype else nullcontext():
            yield

    def backward(self, loss: torch.Tensor) -> None:
        torch.autograd.backward(self._scaler.scale(loss))

    def step(self, factor: float) -> torch.Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), self._max_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def masters(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self._trained.items()}

    def full_state(self, shares: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: share.cpu().contiguous() for name, share in shares.items()}

    @contextmanager
    def applied(self, shares: Mapping[str, torch.Tensor]) -> Iterator[None]:
        masters = self.masters()
        kept = {name: master.clone() for name, master in masters.items()}
        _put(masters, shares)
        try:
            yield
        finally:
            _put(masters, kept)

    def save(self, folder: Path, rank: int) -> None:
        if rank == 0:
            _write(self._state(), folder)

    def snapshot(self, rank: int) -> Callable[[Path], None]:
        # The other ranks hold the same, and would take the memory of the host as many times.
        return partial(_write, _copied(self._state()) if rank == 0 else {})

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.masters(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load(self, folder: Path) -> None:
        _put(self.masters(), load_file(folder / "model.safetensors"))
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        groups = optimisers.settings_of(
            self._optimizer.state_dict()["param_groups"], state["optimizer"]["param_groups"]
        )
        self._optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        if state["scaler"]:  # empty where the run that saved was not fp16
            self._scaler.load_state_dict(state["scaler"])


def _put(masters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, master in masters.items():
        master.copy_(values[name])


def _write(state: dict[str, Any], folder: Path) -> None:
    weights = {name: weight.cpu().contiguous() for name, weight in state["model"].items()}
    save_file(weights, folder / "model.safetensors")
    torch.save({name: state[name] for name in ("optimizer", "scaler")}, folder / "optimizer.pt")


def _copied(value: Any) -> Any:
    """The same values, every tensor of them a copy on the host."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def create(precision: str, device: torch.device, world_size: int) -> Native:
    return Native(precision, device, world_size)
