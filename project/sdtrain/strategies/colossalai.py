"""Colossal-AI through its Booster: ZeRO 1 and 2 (`low_level_zero`), and Gemini, which also moves parameters.

ZeRO: Rajbhandari et al. 2020, arXiv:1910.02054. Gemini: Fang et al. 2021, arXiv:2108.05818 (PatrickStar's
chunks), as Colossal-AI 0.5.0 does it. Both compute with half-precision weights and update fp32 masters that
are divided among the ranks; masters, moments and average are what checkpoints hold, so that resuming is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.adamw import adamw

from sdjob.settings.run_spec import RunSpec
from sdtrain.checkpoint import state_io
from sdtrain.optim import optimizers
from sdtrain.strategies.base import OptimSpec, grouped
from sdtrain.strategies.colossalai_import import importable
from sdtrain.strategies.shards import Range, Shares, gathered, lent, put

with importable():
    from colossalai.booster import Booster
    from colossalai.booster.plugin import GeminiPlugin, LowLevelZeroPlugin
    from colossalai.zero.gemini import gemini_optimizer

_PRECISION = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
_INITIAL_SCALE = 2.0**16  # as torch's GradScaler; ZeRO's own, 2**32, loses the first dozens of steps


class LowLevelZero:
    """Strategy of plugin low_level_zero: whole half-precision weights, everything else in shards."""

    model: nn.Module

    def __init__(self, spec: RunSpec, device: torch.device, world_size: int) -> None:
        self._spec = spec
        self._device = device
        self._world_size = world_size

    def prepare(self, model: nn.Module, optim: OptimSpec) -> None:
        trained = _trained(model)
        exact = _copies(trained)
        self._booster = Booster(
            plugin=LowLevelZeroPlugin(
                stage=self._spec.zero_stage,
                precision=_PRECISION[self._spec.mixed_precision],
                initial_scale=_INITIAL_SCALE,
                max_norm=optim.max_grad_norm,
                cpu_offload=self._spec.cpu_offload,
                overlap_communication=self._device.type == "cuda",
            )
        )
        optimizer = optimizers.build(optim, grouped(trained, optim))
        self.model, self._optimizer, *_ = self._booster.boost(model, optimizer)
        self._working = trained
        self._masters = {name: self._optimizer.working_to_master_param[id(p)] for name, p in trained.items()}
        self._ranges = {name: self._range(p.shape, self._masters[name]) for name, p in trained.items()}
        self._savers = state_io.group_of_savers()
        for master in self._masters.values():
            self._optimizer.optim.state[master] = {
                "step": torch.zeros((), device=master.device),
                **{moment: torch.zeros_like(master) for moment in state_io.MOMENTS},
            }
        put(self.masters(), _parts(exact, self._ranges))

    def _range(self, shape: torch.Size, master: torch.Tensor) -> Range:
        """ZeRO pads the flat tensor to a multiple of the world size, and gives each rank an equal part."""
        offset = min(dist.get_rank() * master.numel(), shape.numel())
        return Range(shape, offset, min(master.numel(), shape.numel() - offset))

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Stage 2 cannot do without the exchange: it keeps no whole gradients."""
        if last or self._spec.zero_stage == 2:
            yield
        else:
            with self._booster.no_sync(self.model, self._optimizer):
                yield

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()  # the weights themselves have the type of the computation

    def backward(self, loss: torch.Tensor) -> None:
        self._booster.backward(loss, self._optimizer)

    def step(self, factor: float) -> torch.Tensor:
        return _step(self._optimizer, factor, self._device)

    def discard(self) -> None:
        self._optimizer.zero_grad()

    def masters(self) -> dict[str, torch.Tensor]:
        return _cut(self._masters, self._ranges)

    def full_state(self, shares: Shares) -> dict[str, torch.Tensor]:
        return gathered(shares, self._ranges, self._device)

    def applied(self, shares: Shares | None) -> AbstractContextManager[None]:
        return lent(self.masters, shares, self._refresh)

    def _refresh(self) -> None:
        """The working weights as the masters are; what the optimizer does at the end of a step. Collective."""
        padded = self._optimizer._working_param_to_padded_working_param
        for name, working in self._working.items():
            target = padded[working]
            dist.all_gather_into_tensor(target, self._masters[name].to(target.device, target.dtype))

    def save(self, folder: Path, ema: Shares | None) -> None:
        state_io.save(folder, self._tables(ema), self._ranges, self._numbers())

    def snapshot(self, ema: Shares | None) -> Callable[[Path], None]:
        return state_io.snapshot(self._tables(ema), self._ranges, self._numbers(), self._savers)

    def _numbers(self) -> state_io.Numbers:
        states = self._optimizer.optim.state
        updates = int(states[next(iter(self._masters.values()))]["step"])
        return state_io.Numbers(updates, _scale_of(self._optimizer.mixed_precision_mixin))

    def load(self, folder: Path, ema: Shares | None) -> None:
        numbers = state_io.load(folder, self._tables(ema), self._ranges)
        for state in self._optimizer.optim.state.values():
            state["step"].fill_(numbers.updates)
        _set_scale(self._optimizer.mixed_precision_mixin, numbers.scaler)
        self._refresh()

    def _tables(self, ema: Shares | None) -> dict[str, Shares]:
        states = self._optimizer.optim.state
        moments = {
            moment: _cut({name: states[m][moment] for name, m in self._masters.items()}, self._ranges)
            for moment in state_io.MOMENTS
        }
        return {"master": self.masters(), **moments, **({"ema": ema} if ema else {})}


class Gemini:
    """Strategy of plugin gemini: parameters in chunks, divided among the ranks and placed by `placement`.

    cuda: everything on the device; cpu: parameters and optimizer in host memory; auto: Gemini decides from
    what it measures in the first step.
    """

    model: nn.Module

    def __init__(self, spec: RunSpec, device: torch.device, world_size: int) -> None:
        self._spec = spec
        self._device = device

    def prepare(self, model: nn.Module, optim: OptimSpec) -> None:
        trained = _trained(model)
        exact = _copies(trained)
        chunk = _chunk_size(trained)
        offloaded = float(self._spec.placement == "cpu")
        auto = self._spec.placement == "auto"
        for parameter in trained.values():
            # Gemini hands autograd a freed tensor of the gradient's layout; autograd would read it to copy it
            # into the weight's layout, were that another one (channels_last convolutions).
            parameter.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
        self._booster = Booster(
            plugin=GeminiPlugin(
                min_chunk_size_m=chunk / 2**20,
                search_range_m=chunk / 4 / 2**20,
                placement_policy="auto" if auto else "static",
                offload_param_frac=offloaded,
                offload_optim_frac=offloaded,
                # Of what is free after the first step, half may be used for masters and moments.
                gpu_margin_mem_ratio=0.5 if auto else 0.0,
                precision=self._spec.mixed_precision,
                initial_scale=_INITIAL_SCALE,
                max_norm=optim.max_grad_norm or float("inf"),  # 0 would leave the norm unknown
                enable_gradient_accumulation=self._spec.gradient_accumulation_steps > 1,
                pin_memory=self._device.type == "cuda" and (auto or bool(offloaded)),
                # Frees storage that another stream may still read.
                enable_async_reduce=False,
            )
        )
        optimizer = ChunkAdamW(
            grouped(trained, optim), betas=optim.betas, weight_decay=optim.weight_decay, eps=optim.epsilon
        )
        self.model, self._optimizer, *_ = self._booster.boost(model, optimizer)
        names = {id(p): name for name, p in trained.items()}
        self._ids = {names[id(p)]: number for number, p in self._optimizer.id_to_real_params.items()}
        self._ranges = {name: self._range(trained[name].shape, number) for name, number in self._ids.items()}
        self._savers = state_io.group_of_savers()
        for name, master in self.masters().items():
            if self._ranges[name].length:
                state = {moment: torch.zeros_like(master) for moment in state_io.MOMENTS}
                self._optimizer.optim.state[self._fake(name)] = {"step": 0, **state}
        put(self.masters(), _parts(exact, self._ranges))
        self._refresh()

    def _range(self, shape: torch.Size, number: int) -> Range:
        _, offset, length = self._optimizer.get_offsets(number)
        return Range(shape, int(offset), int(length)) if length > 0 else Range(shape, 0, 0)

    def _fake(self, name: str) -> nn.Parameter:
        """The parameter that Gemini shows to the optimizer: this rank's part of the real one."""
        fake: nn.Parameter = self._optimizer.id_to_fake_params[self._ids[name]]
        return fake

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()  # chunks are reduced in each backward pass, and add up

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()  # the weights themselves have the type of the computation

    def backward(self, loss: torch.Tensor) -> None:
        self._booster.backward(loss, self._optimizer)

    def step(self, factor: float) -> torch.Tensor:
        norm = _step(self._optimizer, factor, self._device)
        self._forget()
        return norm

    def discard(self) -> None:
        self._optimizer._clear_global_norm()
        self._optimizer.zero_grad()
        self._refresh()  # without accumulation, the gradients lie where the weights were
        self._forget()

    def _forget(self) -> None:
        """After an fp16 overflow Gemini would go on adding to the gradients that overflowed, forever."""
        model: Any = self.model
        model.chunk_manager.accumulating_grads = False

    def masters(self) -> dict[str, torch.Tensor]:
        """Asked for again whenever they are needed: Gemini moves chunks between devices."""
        empty = torch.empty(0, device=self._device)
        return {name: self._master(name) if part.length else empty for name, part in self._ranges.items()}

    def _master(self, name: str) -> torch.Tensor:
        fake = self._fake(name)
        begin, end = self._optimizer.param_to_range[fake]
        share: torch.Tensor = self._optimizer.param_to_chunk16[fake].paired_chunk.payload[begin:end]
        return share

    def full_state(self, shares: Shares) -> dict[str, torch.Tensor]:
        return gathered(shares, self._ranges, self._device)

    @contextmanager
    def applied(self, shares: Shares | None) -> Iterator[None]:
        """All chunks are gathered, so that the plain U-Net inside can be called."""
        model: Any = self.model
        manager = model.chunk_manager
        with lent(self.masters, shares, self._refresh):
            for chunk in manager.get_chunks(model.fp16_params):
                manager.access_chunk(chunk)
            try:
                yield
            finally:
                model._post_forward()  # scatters them, and moves them back to their places

    def _refresh(self) -> None:
        """The half-precision chunks as their masters are; what the optimizer does at the end of a step."""
        for chunk in self._optimizer.chunk16_set:
            chunk.optim_update()

    def save(self, folder: Path, ema: Shares | None) -> None:
        state_io.save(folder, self._tables(ema), self._ranges, self._numbers())

    def snapshot(self, ema: Shares | None) -> Callable[[Path], None]:
        return state_io.snapshot(self._tables(ema), self._ranges, self._numbers(), self._savers)

    def _numbers(self) -> state_io.Numbers:
        steps = [state["step"] for state in self._optimizer.optim.state.values()]
        return state_io.Numbers(max(steps, default=0), _scale_of(self._optimizer.mix_precision_mixin))

    def load(self, folder: Path, ema: Shares | None) -> None:
        numbers = state_io.load(folder, self._tables(ema), self._ranges)
        for state in self._optimizer.optim.state.values():
            state["step"] = numbers.updates
        _set_scale(self._optimizer.mix_precision_mixin, numbers.scaler)
        self._refresh()

    def _tables(self, ema: Shares | None) -> dict[str, Shares]:
        tables: dict[str, Shares] = {"master": self.masters()}
        for moment in state_io.MOMENTS:
            tables[moment] = {
                name: self._optimizer.optim.state[self._fake(name)][moment] if part.length else torch.empty(0)
                for name, part in self._ranges.items()
            }
        return tables | ({"ema": ema} if ema else {})


class ChunkAdamW(torch.optim.Optimizer):
    """AdamW on the fp32 parts of Gemini's chunks, wherever they lie, with half-precision gradients.

    In place of Colossal-AI's HybridAdam: that needs a CUDA compiler on the machine, and for bf16 gradients on
    the CPU it ignores `div_scale`, that is, the clipping.
    """

    num_fp32_shards_per_param = 4  # weight, gradient and two moments: Gemini's measure of what it may move

    def __init__(
        self,
        groups: list[dict[str, object]],
        betas: tuple[float, float],
        weight_decay: float,
        eps: float,
    ) -> None:
        super().__init__(groups, {"betas": betas, "weight_decay": weight_decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None, div_scale: float = -1.0) -> None:  # type: ignore[override]
        """One update with gradients / div_scale; one share at a time, so that few fp32 gradients exist."""
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


gemini_optimizer._AVAIL_OPTIM_LIST.add(ChunkAdamW)


def _step(optimizer: Any, factor: float, device: torch.device) -> torch.Tensor:
    """One update through the plugin, which clips; the norm is inf where fp16 gradients overflowed."""
    for group in optimizer.optim.param_groups:
        group["lr"] = group["base_lr"] * factor
    mixin = getattr(optimizer, "mix_precision_mixin", None) or optimizer.mixed_precision_mixin
    scale = _scale_of(mixin).get("scale", 1.0)
    optimizer._current_grad_norm = None
    optimizer.step()
    optimizer.zero_grad()
    norm = optimizer.get_grad_norm()
    return torch.tensor(float("inf") if norm is None else float(norm) / scale, device=device)


def _scale_of(mixin: Any) -> dict[str, float]:
    """The state of the fp16 loss scale, by the names of torch's GradScaler; empty: none."""
    scaler = getattr(mixin, "grad_scaler", None)
    if scaler is None:
        return {}
    return {
        "scale": float(scaler.scale),
        "_growth_tracker": scaler._growth_step,
        "_hysteresis_step": scaler._hysteresis_step,
    }


def _set_scale(mixin: Any, values: Any) -> None:
    scaler = getattr(mixin, "grad_scaler", None)
    if scaler is not None and values:
        scaler._scale.fill_(values["scale"])
        scaler._growth_step = int(values["_growth_tracker"])
        scaler._hysteresis_step = int(values.get("_hysteresis_step", 0))


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _chunk_size(trained: dict[str, nn.Parameter]) -> int:
    """Values in a chunk, at least: Gemini's own 2**25, or an eighth of a smaller model.

    Gemini keeps what is smaller than one chunk whole on each rank, and then accumulates gradients wrongly
    (zero/gemini/chunk/manager.py multiplies by the world size once more than it divides).
    """
    return min(2**25, sum(p.numel() for p in trained.values()) // 8)


def _copies(trained: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The weights in fp32: Colossal-AI makes its masters from weights that it has already rounded."""
    return {name: p.detach().to("cpu", copy=True) for name, p in trained.items()}


def _parts(tensors: dict[str, torch.Tensor], ranges: dict[str, Range]) -> Shares:
    return {name: tensors[name].flatten()[part.offset : part.stop] for name, part in ranges.items()}


def _cut(tensors: dict[str, torch.Tensor], ranges: dict[str, Range]) -> dict[str, torch.Tensor]:
    """Without the padding; views."""
    return {name: tensor[: ranges[name].length] for name, tensor in tensors.items()}


def create(spec: RunSpec, device: torch.device, world_size: int) -> LowLevelZero | Gemini:
    kind = LowLevelZero if spec.plugin == "low_level_zero" else Gemini
    return kind(spec, device, world_size)
