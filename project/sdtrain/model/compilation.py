"""torch.compile of the training forward pass. Generated images and the held-out loss, of other shapes, stay eager.

A compiled graph must hold everything (no graph breaks), and each graph has fixed shapes; Inductor chooses the layout of
convolutions (channels last) itself.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from sdjob.problems import JobError, no_hardware
from sdjob.settings.run_spec import RunSpec
from sdtrain.runtime import heartbeat

_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # the modes that reuse the memory of results

_PROBES = 64  # the smallest trained tensors, such as biases and norms of all layers
_TOLERANCE = 0.1  # of the norm: bf16 rounds to 0.4 %, and dropped gradients are far beyond

# The loss of a batch, []: see objective.diffusion.loss_of.
LossFunction = Callable[[nn.Module, Any], torch.Tensor]


def compiled(
    loss_of: LossFunction, model: nn.Module, spec: RunSpec, sizes: int, backend: str = "inductor"
) -> LossFunction:
    """The loss function of a run, compiled as `spec.compile` says; blocks are compiled in `model`.

    To be called before a strategy wraps or shards the model: what it does before and after each block (gathering
    weights, exchanging gradients) then stays outside of the compiled code. `sizes`: the shapes that batches have, each
    of which gets a graph of its own; too many are an error instead of eager execution in silence.
    """
    if spec.compile == "off":
        return loss_of
    mode = spec.compile_mode if spec.compile_mode != "default" else None
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend, "mode": mode}
    found = [block for part in model.children() for block in blocks(part)]
    _allow_graphs(sizes * (len(found) if spec.compile == "blocks" else 1))
    if spec.compile == "blocks":
        for block in found:
            _compile_in_training(block, options)
        return loss_of
    whole = _Proven(torch.compile(loss_of, **options), loss_of)
    if spec.compile_mode in _CUDA_GRAPHS:
        return lambda model, batch: whole(model, batch).clone()
    return whole


class _Proven:
    """A compiled loss function whose first gradients are compared with those of eager execution.

    PyTorch 2.13 compiles a whole U-Net on a CPU so that weights before the first upsampling get no gradient.
    """

    def __init__(self, compiled: LossFunction, eager: LossFunction) -> None:
        self._compiled, self._eager = compiled, eager
        self._is_proven = False

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        if not self._is_proven:
            self._prove(model, batch)
            self._is_proven = True
        return self._compiled(model, batch)

    def _prove(self, model: nn.Module, batch: Any) -> None:
        trained = sorted((p for p in model.parameters() if p.requires_grad), key=torch.Tensor.numel)
        some = trained[:_PROBES]
        wanted, found = (
            torch.cat([grad.flatten().float() for grad in torch.autograd.grad(loss(model, batch), some)])
            for loss in (self._eager, self._compiled)
        )
        error = float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))
        if not error <= _TOLERANCE:
            reason = f"gradients differ from those of eager execution by {error:.0%}"
            raise JobError(no_hardware("compile", f"whole: {reason}", "Use compile=blocks, or compile=off."))


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The items of the outermost module lists: a U-Net's blocks, a text encoder's layers."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else blocks(child)


def _compile_in_training(block: nn.Module, options: dict[str, Any]) -> None:
    """Replace `forward`, not the call, whose hooks belong to strategies."""
    eager = block.forward
    whole = torch.compile(eager, **options)

    def forward(*arguments: Any, **named: Any) -> Any:
        return (whole if block.training else eager)(*arguments, **named)

    block.forward = forward


def _allow_graphs(needed: int) -> None:
    """The graphs that a function may have: by default what comes after the eighth runs eagerly, in silence."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, needed)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, needed)
    config.fail_on_recompile_limit_hit = True
    config.optimize_ddp = False  # it would split graphs
    warnings.filterwarnings("ignore", "Dynamo detected a call to a")  # meant for developers


class CompileTime:
    """How long this process has compiled."""

    seconds = 0.0

    @contextmanager
    def measured(self, spec: RunSpec, paused: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """Inside, each compilation is a stage of its own, with signs of life; `paused` is entered around it."""
        if spec.compile == "off":
            yield
            return
        from torch._dynamo.callback import callback_handler as compilations

        stack = ExitStack()

        def start(*_: object) -> None:
            stack.enter_context(paused())
            stack.enter_context(heartbeat.working("compile", children=True, shown=not self.seconds))
            stack.callback(self._add, time.perf_counter())

        def end(*_: object) -> None:
            stack.close()

        compilations.register_start_callback(start)
        compilations.register_end_callback(end)
        try:
            with stack:
                yield
        finally:
            compilations.remove_start_callback(start)
            compilations.remove_end_callback(end)

    def _add(self, since: float) -> None:
        self.seconds += time.perf_counter() - since
