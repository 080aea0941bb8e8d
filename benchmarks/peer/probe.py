"""`python probe.py RESULT SCRIPT FLAGS…`, or `-m MODULE` in place of SCRIPT: runs it, and notes when each optimiser
step ended.

The same clock for every trainer: a hook of PyTorch's on the optimiser. RESULT-<rank>.json receives the notes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import runpy
import sys
import time
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

HERE = Path(__file__).resolve().parent


def main() -> None:
    result, *command = sys.argv[1:]
    walls: list[float] = []
    cpus: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        walls.append(time.time())
        cpus.append(time.process_time())

    register_optimizer_step_post_hook(note)
    if command[0] != "-m":
        give_torchvision()
    try:
        run(command)
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        notes = {"walls": walls, "cpus": cpus, "peak_bytes": peak, "ended": time.time()}
        Path(f"{result}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(notes))


def run(command: list[str]) -> None:
    """As Python itself would."""
    sys.path[0] = str(Path.cwd())
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path[0] = str(Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")


def give_torchvision() -> None:
    """A stand-in where torchvision is not installed, for the script alone.

    Whether it is installed was decided by the libraries when they were imported, so they go on without it.
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
