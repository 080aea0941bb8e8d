"""torch.compile of the training forward pass. Generated images and the held-out loss, of other shapes, stay eager.

A compiled graph must hold everything (no graph breaks), and each graph has fixed shapes; Inductor chooses the layout of
convolutions (channels last) itself.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdjob.output.layout import OutputLayout
from sdjob.settings.run_spec import RunSpec
from sdtrain.runtime import heartbeat

_INDUCTOR, _TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # the modes that reuse the memory of results

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
    whole = torch.compile(loss_of, **options)
    if spec.compile_mode in _CUDA_GRAPHS:
        return lambda model, batch: whole(model, batch).clone()
    return whole


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

    block.forward = forward  # type: ignore[method-assign]


def _allow_graphs(needed: int) -> None:
    """The graphs that a function may have: by default what comes after the eighth runs eagerly, in silence."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, needed)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, needed)
    config.fail_on_recompile_limit_hit = True
    config.optimize_ddp = False  # it would split graphs


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
            stack.enter_context(heartbeat.working("compile", children=True))
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


# --- caches ------------------------------------------------------------------------------------------


def use_caches(spec: RunSpec, layout: OutputLayout, environ: MutableMapping[str, str]) -> str:
    """Set where compiled code is kept for the next start; returns why it is not kept. What the user set stays."""
    if spec.compile == "off" or _INDUCTOR in environ:
        return ""
    folder = layout.cache(spec.cache_dir) / "compiled"
    layout.make(folder) if folder.is_relative_to(layout.root) else folder.mkdir(parents=True, exist_ok=True)
    if reason := _unusable(folder):
        folder = Path(tempfile.mkdtemp(prefix="compiled-"))
    environ[_INDUCTOR] = str(folder / "inductor")
    environ.setdefault(_TRITON, str(folder / "triton"))
    return reason


def _unusable(folder: Path) -> str:
    """Why a folder cannot hold code that is loaded again; empty: it can."""
    about = folder.stat()
    if about.st_uid != os.geteuid() or about.st_mode & 0o002:
        return f"{folder} can be written by others, and code is loaded from there"
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return f"{folder} is mounted noexec"
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except BlockingIOError:
        return ""
    except OSError as error:
        return f"{folder} has no file locks ({error.strerror})"
    return ""
