"""ZeRO 1 and 2 by Colossal-AI: Rajbhandari et al. 2020, arXiv:1910.02054."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from sdjob.settings.run_spec import RunSpec
from sdtrain.checkpoint import state_io
from sdtrain.optim import optimizers
from sdtrain.strategies import colossalai
from sdtrain.strategies.base import OptimSpec, grouped, trainable_parameters
from sdtrain.strategies.shards import Range, Shards, gather_whole, overwrite, replaced

_PRECISION = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}


class LowLevelZero:
    """Strategy of plugin low_level_zero: whole half-precision weights, all other state in shards."""

    model: nn.Module

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        self._spec = spec
        self._device = device

    def prepare(self, model: nn.Module, optim: OptimSpec) -> None:
        trained = trainable_parameters(model)
        exact = colossalai.copies(trained)
        self._booster = colossalai.Booster(
            plugin=colossalai.LowLevelZeroPlugin(
                stage=self._spec.zero_stage,
                precision=_PRECISION[self._spec.mixed_precision],
                initial_scale=colossalai.INITIAL_SCALE,
                max_norm=optim.max_grad_norm,
                cpu_offload=self._spec.cpu_offload,
                overlap_communication=self._device.type == "cuda",
            )
        )
        optimizer = optimizers.build(optim, grouped(trained, optim))
        self.model, self._optimizer, *_ = self._booster.boost(model, optimizer)
        self._mixin = self._optimizer.mixed_precision_mixin
        self._working = trained
        self._masters = {name: self._optimizer.working_to_master_param[id(p)] for name, p in trained.items()}
        self._ranges = {name: self._range(p.shape, self._masters[name]) for name, p in trained.items()}
        self._savers = state_io.group_of_savers()
        for master in self._masters.values():
            self._optimizer.optim.state[master] = {
                "step": torch.zeros((), device=master.device),
                **{key: torch.zeros_like(master) for key in state_io.ADAM_STATE},
            }
        overwrite(self.masters(), colossalai.parts(exact, self._ranges))

    def _range(self, shape: torch.Size, master: torch.Tensor) -> Range:
        """ZeRO pads the flat tensor to a multiple of the world size, and gives each rank an equal slice."""
        offset = min(dist.get_rank() * master.numel(), shape.numel())
        return Range(shape, offset, min(master.numel(), shape.numel() - offset))

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        # Stage 2 keeps no whole gradients, so it exchanges them each time.
        if last or self._spec.zero_stage == 2:
            return nullcontext()
        synchronized: AbstractContextManager[None] = self._booster.no_sync(self.model, self._optimizer)
        return synchronized

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()  # the weights themselves are in the precision of the run

    def backward(self, loss: torch.Tensor) -> None:
        self._booster.backward(loss, self._optimizer)

    def step(self, factor: float) -> torch.Tensor:
        return colossalai.step(self._optimizer, self._mixin, factor, self._device)

    def discard(self) -> None:
        self._optimizer.zero_grad()

    def finish(self) -> None:
        pass  # they are the Booster's

    def masters(self) -> dict[str, torch.Tensor]:
        return self._unpadded(self._masters)

    def full_state(self, shards: Shards) -> dict[str, torch.Tensor]:
        return gather_whole(shards, self._ranges, self._device)

    def applied(self, shards: Shards | None) -> AbstractContextManager[None]:
        return replaced(self.masters, shards, self._refresh)

    def _refresh(self) -> None:
        """Copy the masters to the working weights, as the optimizer does at the end of a step. Collective."""
        padded = self._optimizer._working_param_to_padded_working_param
        for name, working in self._working.items():
            target = padded[working]
            dist.all_gather_into_tensor(target, self._masters[name].to(target.device, target.dtype))

    def writer(self, ema: Shards | None, *, background: bool) -> Callable[[Path], None]:
        step = self._optimizer.optim.state[next(iter(self._masters.values()))]["step"]
        numbers = state_io.Numbers(int(step), colossalai.scaler_state(self._mixin))
        tables = self._tables(ema)
        return state_io.writer(tables, self._ranges, numbers, self._savers, background=background)

    def load(self, folder: Path, ema: Shards | None) -> None:
        numbers = state_io.load(folder, self._tables(ema), self._ranges)
        for state in self._optimizer.optim.state.values():
            state["step"].fill_(numbers.updates)
        colossalai.load_scaler_state(self._mixin, numbers.scaler)
        self._refresh()

    def _tables(self, ema: Shards | None) -> dict[str, Shards]:
        states = self._optimizer.optim.state
        adam = {
            key: self._unpadded({name: states[m][key] for name, m in self._masters.items()})
            for key in state_io.ADAM_STATE
        }
        return state_io.tables(self.masters(), adam, ema)

    def _unpadded(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Views without ZeRO's padding."""
        return {name: tensor[: self._ranges[name].length] for name, tensor in tensors.items()}


create = LowLevelZero
