"""Facts of each parallel strategy and device type; launcher, worker and documents all read these tables."""

from __future__ import annotations

from dataclasses import dataclass

from sdjob.settings.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class DeviceFacts:
    """What a device type computes in besides fp32, where that does not depend on the individual device."""

    precisions: tuple[str, ...] = ("bf16", "fp16")
    auto_mixes: bool = True  # whether mixed_precision=auto takes one of them where it can


DEVICE_FACTS: dict[str, DeviceFacts] = {
    "cuda": DeviceFacts(),
    "cpu": DeviceFacts(("bf16",), auto_mixes=False),  # fp16 runs, slower than fp32; bf16 is fast on few
    "mps": DeviceFacts(auto_mixes=False),  # bf16 on macOS 14 or higher, emulated by the older chips
    **dict.fromkeys(("gcu", "npu", "musa", "mlu", "xpu"), DeviceFacts()),
}

_ANY_DEVICE = tuple(DEVICE_FACTS)
_COLOSSAL_DEVICES = ("cuda", "npu")


@dataclass(frozen=True)
class PluginFacts:
    """What a parallel strategy can do."""

    module: str  # its module in sdtrain.strategies
    devices: tuple[str, ...] = _ANY_DEVICE
    precisions: tuple[str, ...] = ("no", "bf16", "fp16")
    settings: tuple[str, ...] = ()  # those that only some plugins have
    package: str = ""  # what has to be installed besides torch
    own_optimizer: str = ""  # the only one, implemented by its module; "": those of sdtrain.optim

    @property
    def shards(self) -> bool:
        """Whether each process holds a shard, and computes with weights in the type of the run. With the others
        each holds everything in fp32, and computes with those weights and autocast or with a copy in bf16."""
        return self.module != "ddp"


_OF_DDP = ("use_dora", "weights_dtype", "reduce_dtype")

PLUGINS: dict[str, PluginFacts] = {
    "none": PluginFacts("ddp", settings=_OF_DDP),
    "torch_ddp": PluginFacts("ddp", settings=_OF_DDP),
    "torch_ddp_fp16": PluginFacts("ddp", precisions=("fp16",), settings=_OF_DDP),
    "fsdp": PluginFacts(
        "fsdp",
        tuple(name for name in _ANY_DEVICE if name != "mps"),  # torch.distributed has no backend for it
        settings=("reshard_after_forward", "cpu_offload", "use_dora"),
    ),
    "low_level_zero": PluginFacts(
        "colossalai_zero", _COLOSSAL_DEVICES, settings=("zero_stage", "cpu_offload"), package="colossalai"
    ),
    "gemini": PluginFacts(
        "colossalai_gemini",
        _COLOSSAL_DEVICES,
        precisions=("bf16", "fp16"),
        settings=("placement",),
        package="colossalai",
        own_optimizer="adamw",
    ),
}


def plugins_with(setting: str) -> list[str]:
    """The plugins that have this setting; none: it belongs to all."""
    return [name for name, facts in PLUGINS.items() if setting in facts.settings]


def optimizers_of(plugin: str) -> list[str]:
    """The optimizers that a plugin can train with."""
    facts = PLUGINS[plugin]
    if facts.own_optimizer:
        return [facts.own_optimizer]
    return [name for name, each in OPTIMIZERS.items() if each.adam_state or not facts.shards]
