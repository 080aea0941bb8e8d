"""What `compile=auto` becomes, and when a compilation that was asked for is refused."""

from __future__ import annotations

from collections.abc import Iterator

from sdjob.automatic import Choice
from sdjob.problems import Problem, bad_setting, no_hardware
from sdjob.settings.compatibility import Topology
from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec

DEVICES = ("cuda", "cpu")  # on which torch.compile is tested or used by many
# Compiling takes one or two minutes, and saves a part of each step that is seldom above 0.1 s.
_PASSES = 1000


def choose(spec: RunSpec, topology: Topology, lacking: str) -> Choice:
    """`lacking`: what this machine lacks to compile for the device, as `machine.lacking` says."""
    if spec.compile != "auto":
        return Choice(spec.compile, "as set")
    device, passes = topology.device, spec.max_train_steps * spec.gradient_accumulation_steps
    if device != "cuda":
        return Choice("off", "a CPU" if device == "cpu" else f"not used on {device}")
    if lacking:
        return Choice("off", f"no {lacking}")
    if PLUGINS[spec.plugin].package:
        return Choice("off", f"plugin={spec.plugin}")
    if spec.use_dora:
        return Choice("off", "use_dora=1")
    if spec.aspect_ratio_buckets:
        return Choice("off", "each size of aspect_ratio_buckets would be compiled")
    if passes < _PASSES:
        return Choice("off", f"it would not pay in {passes} forward passes")
    # Not whole: blocks compile in less time, few operations to fuse lie between them, and gradients are exchanged while
    # the backward pass goes on.
    return Choice("blocks", f"CUDA, {passes} forward passes")


def problems(spec: RunSpec, topology: Topology, lacking: str) -> Iterator[Problem]:
    """Why a compilation that was asked for by name is not possible there."""
    wanted, plugin = spec.compile, PLUGINS[spec.plugin]
    if wanted not in ("whole", "blocks"):
        return
    if topology.device not in DEVICES:
        found = f"{wanted} on device={topology.device}"
        yield no_hardware("compile", found, f"It runs on {' and '.join(DEVICES)}: use compile=off.")
    elif lacking:
        remedy = f"{_INSTALL.get(lacking, _INSTALL[''])}, or use compile=off."
        yield no_hardware("compile", f"{wanted}, and this machine has no {lacking}", remedy)
    if plugin.package:
        remedy = (
            "That plugin moves weights during the forward pass: use compile=off, or plugin=torch_ddp or fsdp."
        )
        yield bad_setting("compile", f"{wanted} with plugin={spec.plugin}", remedy)
    elif spec.use_dora:
        remedy = "peft's DoRA cannot be compiled: use compile=off, or a LoRA without use_dora."
        yield bad_setting("compile", f"{wanted} with use_dora on", remedy)
    elif wanted == "whole" and (obstacle := _not_whole(spec)):
        found, remedy = obstacle
        yield bad_setting("compile", f"whole with {found}", f"{remedy}: use compile=blocks.")


_INSTALL = {
    "Python.h": "Install the headers of this Python, such as apt-get install python3-dev",
    "triton": "Install the triton of this PyTorch: python -m pip install triton",
    "": "Install a compiler: apt-get install gcc g++",
}


def _not_whole(spec: RunSpec) -> tuple[str, str] | None:
    if PLUGINS[spec.plugin].shards:
        return f"plugin={spec.plugin}", "Weights are gathered block by block"
    if spec.lora_dropout:
        return f"lora_dropout={spec.lora_dropout:g}", "Its gradients cannot be compared with eager execution"
    if spec.train_text_encoder:
        return "train_text_encoder on", "A whole forward pass is compiled with frozen text encoders only"
    return None
