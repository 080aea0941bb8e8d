"""`weights_dtype=auto`: the type of the weights that the model computes with, next to fp32 masters."""

from __future__ import annotations

from sdjob.automatic import Choice
from sdjob.settings import compatibility
from sdjob.settings.compatibility import Topology
from sdjob.settings.plugins import PLUGINS
from sdjob.settings.run_spec import RunSpec


def choose(spec: RunSpec, topology: Topology) -> Choice:
    """fp32 or bf16; `auto` where only the device itself knows."""
    if spec.weights_dtype != "auto":
        return Choice(spec.weights_dtype, "as set")
    if PLUGINS[spec.plugin].shards:
        return Choice("auto", f"{spec.plugin} computes with weights in the type of the computation")
    if spec.lora_rank:
        return Choice("fp32", "a LoRA is small, and its base has the type of the computation")
    precision = compatibility.resolve_precision(spec, topology)
    if precision == "auto":
        return Choice("auto", "the device decides")
    if precision != "bf16":
        return Choice("fp32", f"mixed_precision={precision}")
    if topology.device == "cpu":
        return Choice("fp32", "a CPU gains nothing")
    return Choice("bf16", "fewer conversions and smaller activations than with fp32 weights")
