"""torch.compile of the training forward pass. Generated images and the held-out loss, of other shapes, stay eager.

A compiled graph must hold everything (no graph breaks), and each graph has fixed shapes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map_only

from sdjob.problems import JobError, no_hardware
from sdjob.settings.run_spec import RunSpec
from sdtrain.runtime import heartbeat

_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # the modes that reuse the memory of results

_PROBES = 64  # the smallest trained tensors, such as biases and norms of all layers
_TOLERANCE = 0.1  # of the norm: bf16 rounds to 0.4 %, and dropped gradients are far beyond

# The loss of a batch, []: see objective.diffusion.loss_of.
LossFunction = Callable[[nn.Module, Any], torch.Tensor]
Function = Callable[..., Any]


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
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
    if backend == "inductor":
        options["options"] = _inductor_options(spec.compile_mode, next(model.parameters()).device)
    found = [block for part in model.children() for block in blocks(part)]
    _allow_graphs(sizes * (len(found) if spec.compile == "blocks" else 1))
    if spec.compile == "blocks":
        for block in found:
            _compile_in_training(block, options, is_comparable=not spec.lora_dropout)
        return loss_of
    whole = _Proven(torch.compile(loss_of, **options), loss_of, model, "whole")
    if spec.compile_mode in _CUDA_GRAPHS:
        return lambda model, batch: whole(model, batch).clone()
    return whole


def _inductor_options(mode: str, device: torch.device) -> dict[str, Any]:
    from torch._inductor import list_mode_options

    options: dict[str, Any] = dict(list_mode_options(mode))
    if device.type == "cpu":
        # With convolutions laid out anew, PyTorch 2.13 gives small U-Nets wrong gradients before an upsampling, and is
        # slower; the strategy has laid out the weights already.
        options["layout_optimization"] = False
    return options


class _Proven:
    """A compiled function whose first results and gradients are compared with those of eager execution."""

    def __init__(self, compiled: Function, eager: Function, module: nn.Module, name: str) -> None:
        self._compiled, self._eager, self._module, self._name = compiled, eager, module, name
        self._is_proven = False

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not self._is_proven:
            self._is_proven = True
            self._prove(arguments, named)
        return self._compiled(*arguments, **named)

    def _prove(self, arguments: Any, named: Any) -> None:
        arguments, named = tree_map_only(torch.Tensor, _leaf, (arguments, named))
        inputs = [leaf for leaf in tree_leaves((arguments, named)) if _is_trained(leaf)]
        trained = sorted(filter(_is_trained, self._module.parameters()), key=torch.Tensor.numel)[:_PROBES]
        with saved_tensors_hooks(_as_it_is, _as_it_is):  # not those of gradient checkpointing around a block
            wanted, found = (
                _results(function(*arguments, **named), inputs, trained)
                for function in (self._eager, self._compiled)
            )
        errors = (_error(*pair) for pair in zip(found, wanted, strict=True))
        wrong = next((error for error in errors if not error <= _TOLERANCE), None)  # NaN is wrong, too
        if wrong is not None:
            reason = f"{self._name}: results or gradients differ from those of eager execution by {wrong:.0%}"
            raise JobError(no_hardware("compile", reason, "Use compile=off."))


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _is_trained(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _results(output: Any, *of: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What a function gave, and for each group of tensors the gradients of its square, all flat."""
    outputs = [each for each in tree_leaves(output) if isinstance(each, torch.Tensor)]
    tensors = [tensor for group in of for tensor in group]
    roots = [each.float().square().sum() for each in outputs if each.requires_grad]
    grads = iter(torch.autograd.grad(roots, tensors, materialize_grads=True) if roots and tensors else ())
    groups = [outputs, *([next(grads) for _ in group] for group in of if roots)]
    return [torch.cat([each.detach().flatten().float() for each in group]) for group in groups if group]


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative to the norm of what is wanted, without its values that are not finite, as fp16 has some."""
    is_finite = wanted.isfinite()
    found, wanted = found[is_finite], wanted[is_finite]
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The items of the outermost module lists: a U-Net's blocks, a text encoder's layers."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else blocks(child)


def _compile_in_training(block: nn.Module, options: dict[str, Any], is_comparable: bool) -> None:
    """Replace `forward`, not the call, whose hooks belong to strategies."""
    eager = block.forward
    whole: Function = torch.compile(eager, **options)
    if is_comparable:
        whole = _Proven(whole, eager, block, f"blocks: {type(block).__name__}")

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
