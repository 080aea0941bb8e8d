"""Kernels, bytes and memory of one training step at its true size, without a GPU: on tensors that have no content.

The step is the project's own: encoding, noise, forward, backward, optimizer and EMA, on FakeTensors of the CPU, with
norms in fp32 as CUDA's autocast has them. A kernel is an operation that writes; bytes are what kernels read and write.
Memory is that of tensors alone: no workspaces, no fragmentation, no CUDA context.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from sdjob.settings.run_spec import RunSpec
from sdtrain import strategies
from sdtrain.model import load
from sdtrain.objective.diffusion import loss_of, noised
from sdtrain.optim.ema import Ema
from sdtrain.runtime import devices
from sdtrain.strategies import exchange
from sdtrain.strategies.base import optim_spec
from sdtrain.tools import synthetic

_CPU = torch.device("cpu")
_ATTENTION = "scaled_dot_product"
_WITHOUT_KERNEL = (
    "empty",
    "new_empty",
    "detach",
    "alias",
    "_unsafe_view",
    "view",
    "_reshape_alias",
    "as_strided",
)


PASSES = ("forward", "backward")
PHASES = ("encode", *PASSES, "update")


@dataclass(frozen=True)
class Kind:
    """Kernels of one name in a phase; `head`: channels of an attention head, 0 where there is no attention."""

    phase: str
    name: str
    head: int = 0


@dataclass
class Kernels:
    """How many of a kind, the bytes that they move, and their floating-point operations."""

    count: int = 0
    moved: int = 0
    flops: int = 0

    def __add__(self, other: Kernels) -> Kernels:
        return Kernels(self.count + other.count, self.moved + other.moved, self.flops + other.flops)


@dataclass(frozen=True)
class StepTrace:
    """One optimizer step; memory in bytes."""

    static: int  # between two steps: weights, optimizer state, EMA, frozen parts
    saved: int  # what the forward pass leaves for the backward pass
    peaks: dict[str, int]  # the largest sum in each phase
    kernels: dict[Kind, Kernels]

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    def total(self, *phases: str) -> Kernels:
        """The sum over these phases."""
        return sum((each for kind, each in self.kernels.items() if kind.phase in phases), Kernels())


def trace(spec: RunSpec, model: str, *, cached: bool) -> StepTrace:
    """A step of a run with AdamW, whose state is there before the first. `cached`: latents and prompts."""
    meta = synthetic.parts(model, spec.mixed_precision, torch.device("meta"), lora=spec.lora_rank > 0)
    trainable = load.make_trainable(meta, spec)
    parts = replace(meta, device=_CPU)
    watch = _Watch()
    with FakeTensorMode(allow_non_fake_inputs=True), watch, _cuda_norms():
        for part in (trainable, parts.vae, *parts.text_encoders.values()):
            _as_fake(part)
        strategy = strategies.create(spec, _CPU)
        strategy.prepare(trainable, optim_spec(spec, parts.architecture.facts.denoiser))
        ema = Ema(strategy.masters(), spec.ema_decay) if spec.use_ema else None
        batches = synthetic.batches(parts, spec, 0)
        if cached:
            batches = synthetic.cached(batches, parts)
        inputs = next(batches)
        static = watch.restart()
        watch.phase = "encode"
        batch = noised(parts, inputs, spec)
        watch.phase = "forward"
        before = watch.live
        with strategy.accumulate(last=True):
            with strategy.autocast():
                loss = loss_of(strategy.model, batch)
            saved = watch.live - before
            watch.phase = "backward"
            strategy.backward(loss)
        watch.phase = "update"
        del loss, batch, inputs
        strategy.step(1.0)
        if ema:
            ema.update(strategy.masters())
    return StepTrace(static, saved, dict(watch.peaks), dict(watch.kernels))


@contextmanager
def _cuda_norms() -> Iterator[None]:
    """Norms in fp32 under autocast, which only CUDA has. A function mode would not be there in backward passes, which
    compute checkpointed activations again."""

    def in_fp32(norm: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any, **kwargs: Any) -> torch.Tensor:
            if torch.is_autocast_enabled("cpu"):
                args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
            return norm(*args, **kwargs)

        return call

    with (
        patch.object(devices, "CHANNELS_LAST", ()),  # nor has it the layout of a CPU
        patch.object(exchange, "IN_PLACE", ()),
        patch.object(functional, "group_norm", in_fp32(functional.group_norm)),
        patch.object(functional, "layer_norm", in_fp32(functional.layer_norm)),
    ):
        yield


def _as_fake(module: nn.Module) -> None:
    """Replace tensors of the meta device, on which there is no autocast."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None and parameter.is_meta:
                new = torch.empty_like(parameter, device=_CPU, requires_grad=False)
                each._parameters[name] = nn.Parameter(new, parameter.requires_grad)
        for name, buffer in each._buffers.items():
            if buffer is not None and buffer.is_meta:
                each._buffers[name] = torch.zeros_like(buffer, device=_CPU)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts kernels and follows which storages are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self._sizes: dict[int, int] = {}
        self.restart()

    def restart(self) -> int:
        """Forget what was counted; returns the bytes that are there."""
        self.phase = "before"
        self.peaks: dict[str, int] = defaultdict(int)
        self.kernels: dict[Kind, Kernels] = defaultdict(Kernels)
        return self.live

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = operation(*args, **kwargs)
        written = [each for each in tree_leaves(output) if isinstance(each, torch.Tensor)]
        for tensor in written:
            self._follow(tensor)
        name = operation._overloadpacket.__name__
        if not operation.is_view and name not in _WITHOUT_KERNEL:
            read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
            if not written and operation._schema.is_mutable:
                written = _changed(operation, args)
            if written:
                kind = Kind(self.phase, name, read[0].shape[-1] if _ATTENTION in name else 0)
                moved = sum(each.numel() * each.element_size() for each in (*read, *written))
                self.kernels[kind] += Kernels(1, moved, _flops(operation, args, kwargs, output))
        return output

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._gone, key)
        self.peaks[self.phase] = max(self.peaks[self.phase], self.live)

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def _changed(operation: Any, args: Any) -> list[torch.Tensor]:
    """The tensors that an operation without a result changes, such as the update of many at once."""
    changed = [
        given
        for argument, given in zip(operation._schema.arguments, args, strict=False)
        if argument.alias_info and argument.alias_info.is_write
    ]
    return [each for each in tree_leaves(changed) if isinstance(each, torch.Tensor)]


def _flops(operation: Any, args: Any, kwargs: Any, output: Any) -> int:
    name = operation._overloadpacket.__name__
    if _ATTENTION in name:
        shapes = [each.shape for each in args if isinstance(each, torch.Tensor)]
        return int(sdpa_backward_flop(*shapes[:4]) if "backward" in name else sdpa_flop(*shapes[:3]))
    count = flop_registry.get(operation._overloadpacket)
    return int(count(*args, **kwargs, out_val=output)) if count else 0
