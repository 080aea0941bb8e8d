"""Gemini by Colossal-AI: Fang et al. 2021, arXiv:2108.05818 (PatrickStar's chunks), as Colossal-AI 0.5.0 does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

from sdjob.settings.run_spec import RunSpec
from sdtrain.checkpoint import state_io
from sdtrain.optim import optimizers
from sdtrain.strategies import colossalai
from sdtrain.strategies.base import OptimSpec, grouped, trainable_parameters
from sdtrain.strategies.shards import Range, Shards, gather_whole, overwrite, replaced


class Gemini:
    """Strategy of plugin gemini: parameters in chunks, divided among the ranks and placed by `placement`.

    cuda: everything on the device; cpu: parameters and optimizer state in host memory; auto: Gemini decides by its
    measurements in the first step.
    """

    model: nn.Module

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        self._spec = spec
        self._device = device

    def prepare(self, model: nn.Module, optim: OptimSpec) -> None:
        trained = trainable_parameters(model)
        exact = colossalai.copies(trained)
        chunk = _chunk_size(trained)
        offloaded = float(self._spec.placement == "cpu")
        auto = self._spec.placement == "auto"
        for parameter in trained.values():
            # Gemini gives autograd a freed tensor in the gradient's layout, which autograd would read in order to
            # copy it to the weight's layout if that is a different one (channels_last convolutions).
            parameter.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
        self._booster = colossalai.Booster(
            plugin=colossalai.GeminiPlugin(
                min_chunk_size_m=chunk / 2**20,
                search_range_m=chunk / 4 / 2**20,
                placement_policy="auto" if auto else "static",
                offload_param_frac=offloaded,
                offload_optim_frac=offloaded,
                # Masters and optimizer state may use half of the memory that is free after the first step.
                gpu_margin_mem_ratio=0.5 if auto else 0.0,
                precision=self._spec.mixed_precision,
                initial_scale=colossalai.INITIAL_SCALE,
                max_norm=optim.max_grad_norm or float("inf"),  # 0 would leave the norm unknown
                enable_gradient_accumulation=self._spec.gradient_accumulation_steps > 1,
                pin_memory=self._device.type == "cuda" and (auto or bool(offloaded)),
                # It frees storage that another stream may still read.
                enable_async_reduce=False,
            )
        )
        optimizer = ChunkAdamW(grouped(trained, optim), optim.adam)
        self.model, self._optimizer, *_ = self._booster.boost(model, optimizer)
        self._mixin = self._optimizer.mix_precision_mixin
        names = {id(p): name for name, p in trained.items()}
        self._ids = {names[id(p)]: number for number, p in self._optimizer.id_to_real_params.items()}
        self._ranges = {name: self._range(trained[name].shape, number) for name, number in self._ids.items()}
        self._savers = state_io.group_of_savers()
        for name, master in self.masters().items():
            if self._ranges[name].length:
                state = {key: torch.zeros_like(master) for key in state_io.ADAM_STATE}
                self._optimizer.optim.state[self._fake(name)] = {"step": 0, **state}
        overwrite(self.masters(), colossalai.parts(exact, self._ranges))
        self._refresh()

    def _range(self, shape: torch.Size, number: int) -> Range:
        _, offset, length = self._optimizer.get_offsets(number)
        return Range(shape, int(offset), int(length)) if length > 0 else Range(shape, 0, 0)

    def _fake(self, name: str) -> nn.Parameter:
        """The parameter that the optimizer gets from Gemini: this rank's shard of the real one."""
        fake: nn.Parameter = self._optimizer.id_to_fake_params[self._ids[name]]
        return fake

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()  # chunks are reduced in each backward pass, and add up

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()  # the weights themselves are in the precision of the run

    def backward(self, loss: torch.Tensor) -> None:
        self._booster.backward(loss, self._optimizer)

    def step(self, factor: float) -> torch.Tensor:
        norm = colossalai.step(self._optimizer, self._mixin, factor, self._device)
        self._stop_accumulating()
        return norm

    def discard(self) -> None:
        self._optimizer._clear_global_norm()
        self._optimizer.zero_grad()
        self._refresh()  # without accumulation, gradients are stored in the place of the weights
        self._stop_accumulating()

    def _stop_accumulating(self) -> None:
        """After an fp16 overflow Gemini would keep adding to the gradients that overflowed, forever."""
        model: Any = self.model
        model.chunk_manager.accumulating_grads = False

    def finish(self) -> None:
        pass  # they are the Booster's

    def masters(self) -> dict[str, torch.Tensor]:
        """Looked up each time: Gemini moves chunks between devices."""
        empty = torch.empty(0, device=self._device)
        return {name: self._master(name) if part.length else empty for name, part in self._ranges.items()}

    def _master(self, name: str) -> torch.Tensor:
        fake = self._fake(name)
        start, end = self._optimizer.param_to_range[fake]
        shard: torch.Tensor = self._optimizer.param_to_chunk16[fake].paired_chunk.payload[start:end]
        return shard

    def full_state(self, shards: Shards) -> dict[str, torch.Tensor]:
        return gather_whole(shards, self._ranges, self._device)

    @contextmanager
    def applied(self, shards: Shards | None) -> Iterator[None]:
        """Gather all chunks, so that the unwrapped network can be called."""
        model: Any = self.model
        manager = model.chunk_manager
        with replaced(self.masters, shards, self._refresh):
            for chunk in manager.get_chunks(model.fp16_params):
                manager.access_chunk(chunk)
            try:
                yield
            finally:
                model._post_forward()  # scatters them, and moves them back to their devices

    def _refresh(self) -> None:
        """Copy the masters to the half-precision chunks, as the optimizer does at the end of a step."""
        for chunk in self._optimizer.chunk16_set:
            chunk.optim_update()

    def writer(self, ema: Shards | None, *, background: bool) -> Callable[[Path], None]:
        updates = max((state["step"] for state in self._optimizer.optim.state.values()), default=0)
        numbers = state_io.Numbers(updates, colossalai.scaler_state(self._mixin))
        tables = self._tables(ema)
        return state_io.writer(tables, self._ranges, numbers, self._savers, background=background)

    def load(self, folder: Path, ema: Shards | None) -> None:
        numbers = state_io.load(folder, self._tables(ema), self._ranges)
        for state in self._optimizer.optim.state.values():
            state["step"] = numbers.updates
        colossalai.load_scaler_state(self._mixin, numbers.scaler)
        self._refresh()

    def _tables(self, ema: Shards | None) -> dict[str, Shards]:
        states = self._optimizer.optim.state
        adam = {
            key: {
                name: states[self._fake(name)][key] if part.length else torch.empty(0)
                for name, part in self._ranges.items()
            }
            for key in state_io.ADAM_STATE
        }
        return state_io.tables(self.masters(), adam, ema)


class ChunkAdamW(torch.optim.Optimizer):
    """AdamW on the fp32 parts of Gemini's chunks, wherever they lie, with half-precision gradients.

    It replaces Colossal-AI's HybridAdam, which needs a CUDA compiler on the machine, and for bf16 gradients on
    the CPU ignores `div_scale`, that is, the clipping.
    """

    num_fp32_shards_per_param = 4  # weight, gradient, exp_avg, exp_avg_sq: Gemini plans its memory by it

    @torch.no_grad()
    def step(self, closure: Any = None, div_scale: float = -1.0) -> None:  # type: ignore[override]
        """One update with gradients / div_scale; one shard at a time, so that few fp32 gradients exist."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad.float()
                if div_scale > 0:
                    gradient = gradient / div_scale
                state = self.state[parameter]
                adamw(
                    [parameter.data],
                    [gradient],
                    [state["exp_avg"]],
                    [state["exp_avg_sq"]],
                    [],
                    [torch.full((), float(state["step"]), device=parameter.device)],
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                    fused=parameter.device.type in optimizers.FUSED,
                )
                state["step"] += 1


colossalai.gemini_optimizer._AVAIL_OPTIM_LIST.add(ChunkAdamW)


def _chunk_size(trained: dict[str, nn.Parameter]) -> int:
    """The least number of values per chunk: Gemini's own 2**25, or an eighth of a smaller model.

    Gemini keeps what is smaller than one chunk whole on each rank, and then accumulates gradients wrongly
    (zero/gemini/chunk/manager.py multiplies by the world size once more than it divides).
    """
    return min(2**25, sum(p.numel() for p in trained.values()) // 8)


create = Gemini
