"""`python probe.py RESULT SCRIPT FLAGS…`, or `-m MODULE` instead of SCRIPT: run it and record when each optimizer
step started and ended.

The same clock for every trainer: a PyTorch hook on the optimizer. The times are written to RESULT-<rank>.json. If
PEER_TURNS names a folder, each step waits for its turn: `turns.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from turns import Turns  # noqa: E402


def main() -> None:
    result, *command = sys.argv[1:]
    rank = int(os.environ.get("RANK", 0))
    turns = Turns.of(os.environ)
    begins: list[tuple[float, float]] = []
    ends: list[tuple[float, float]] = []

    def note(*_: object) -> None:
        import torch

        ends.append((time.time(), time.process_time()))
        if turns and rank == 0:
            turns.over(step=len(ends))
        if turns and torch.distributed.is_initialized():
            torch.distributed.barrier()
        begins.append((time.time(), time.process_time()))

    sys.meta_path.insert(
        0, AfterImport("torch.optim.optimizer", lambda m: m.register_optimizer_step_post_hook(note))
    )
    if command[0] != "-m":
        give_torchvision()
    try:
        run(command)
    finally:
        import torch

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        on_device = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
        notes = {"begins": begins, "ends": ends, "peak_bytes": peak, "device_peak_bytes": on_device}
        Path(f"{result}-{rank}.json").write_text(json.dumps(notes))


class AfterImport:
    """Calls `then` with a module once it has been imported; so trainers import PyTorch when and how they want to."""

    def __init__(self, name: str, then: Callable[[Any], None]) -> None:
        self._name, self._then = name, then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec
        assert spec.loader
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            self._then(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def run(command: list[str]) -> None:
    """Run a script or a module, as Python itself would."""
    if command[0] == "-m":
        sys.path[0] = str(Path.cwd())
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(command[0]).parent)
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def give_torchvision() -> None:
    """Replace torchvision where it is not installed, for the script only.

    The libraries decide at import whether it is installed, and are imported first, so that they work without it.
    """
    import diffusers  # noqa: F401
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        spec = importlib.util.spec_from_file_location("torchvision", HERE / "stand_in.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["torchvision"] = module
        spec.loader.exec_module(module)


if __name__ == "__main__":
    main()
