"""What the flags of accelerate launch, torchrun and colossalai run become here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sdjob.settings.plugins import DEVICE_FACTS
from sdlaunch.convert.lines import DEFAULT, Flag, Line, Rule, fixed, lost, note, setting, whole

_WITH_ACCELERATE = "accelerate of this vendor knows its devices; launcher=torchrun works too."
_RENDEZVOUS = "The launcher names the meeting of the nodes itself: rendezvous_id, rendezvous_timeout."
_NODES = "Start the same command on each node, with NNODES, NODE_RANK and MASTER_ADDR, unless the platform sets them."
_FSDP = "Set plugin=fsdp; reshard_after_forward and cpu_offload are its options."
_DEEPSPEED = f"There is no DeepSpeed here. {_FSDP}"
_FIXED = "Processes are started in this way in any case."


def _vendor(device: str) -> Rule:
    def rule(flag: Flag) -> Iterable[Line]:
        if flag.is_off:
            yield Line(str(flag), remark=DEFAULT)
        else:
            yield Line(str(flag), "device", device)
            yield Line(str(flag), "launcher", "accelerate", _WITH_ACCELERATE)

    return rule


def _distributed_type(flag: Flag) -> Iterable[Line]:
    kind = flag.text.upper()
    if kind == "FSDP":
        yield Line(str(flag), "plugin", "fsdp")
    elif (device := kind.removeprefix("MULTI_").lower()) in DEVICE_FACTS and device != "cpu":
        yield from _vendor(device)(flag)
    elif kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        yield Line(str(flag), remark=_FIXED)
    else:
        yield Line(str(flag), remark=_FSDP, lost=True)


def _config_file(flag: Flag) -> Iterable[Line]:
    """A file that convert could not read; otherwise its keys are flags."""
    text = "Numbers of processes and nodes are read from it; a precision in it is not: set mixed_precision."
    yield Line(str(flag), "accelerate_config", flag.text, text)
    yield Line(str(flag), "launcher", "accelerate")


def _device_ids(flag: Flag) -> Iterable[Line]:
    """`--gpu_ids=all` or `--gpu_ids=0,1`."""
    if flag.text == "all":
        yield Line(str(flag), remark=DEFAULT)
    else:
        yield Line(str(flag), "CUDA_VISIBLE_DEVICES", flag.text)


# Keys that `accelerate config` writes for any machine.
_OF_FILES = """
compute_environment downcast_bf16 enable_cpu_affinity main_training_function tpu_env tpu_use_cluster tpu_use_sudo
"""
_TORCHRUN: Mapping[str, Rule] = {
    "nproc_per_node": setting("NPROC_PER_NODE"),
    "nnodes": setting("NNODES"),
    "node_rank": setting("NODE_RANK"),
    "master_addr": setting("MASTER_ADDR"),
    "master_port": setting("MASTER_PORT"),
    "max_restarts": setting("max_restarts"),
    "standalone": note(_FIXED),
    "rdzv_endpoint": note(f"{_RENDEZVOUS} The address of node 0 is MASTER_ADDR, its port MASTER_PORT."),
    "rdzv_id": setting("rendezvous_id"),
    **dict.fromkeys(("rdzv_backend", "rdzv_conf"), note(_RENDEZVOUS)),
    **dict.fromkeys(
        ("log_dir", "redirects", "tee"), note("Each rank has its log in logs/ of the output folder.")
    ),
}
_RULES: Mapping[str, Mapping[str, Rule]] = {
    "python": {},
    "torchrun": _TORCHRUN,
    "colossalai": {
        **_TORCHRUN,
        "num_nodes": setting("NNODES"),
        **dict.fromkeys(("host", "hostfile", "include", "exclude", "ssh_port"), note(_NODES)),
        "extra_launch_args": lost("Write these arguments of torchrun as settings."),
    },
    "accelerate": {
        "num_machines": setting("NNODES"),
        "main_process_ip": setting("MASTER_ADDR"),
        "main_process_port": setting("MASTER_PORT"),
        "mixed_precision": setting("mixed_precision"),
        "gpu_ids": _device_ids,
        "config_file": _config_file,
        "max_restarts": setting("max_restarts"),
        "num_cpu_threads_per_process": note("OMP_NUM_THREADS, in the environment, is passed on."),
        "use_fsdp": fixed("plugin", "fsdp"),
        **dict.fromkeys(("use_deepspeed", "deepspeed_config_file", "deepspeed_config"), lost(_DEEPSPEED)),
        "use_megatron_lm": lost(f"There is no Megatron here. {_FSDP}"),
        "rdzv_backend": note(_RENDEZVOUS),
        "distributed_type": _distributed_type,
        **dict.fromkeys(("cpu", "use_cpu"), fixed("device", "cpu")),
        **dict.fromkeys(("dynamo_backend", "dynamo_config"), note("Compilation changes the speed only.")),
        **dict.fromkeys(("multi_gpu", "same_network", *_OF_FILES.split()), note(_FIXED)),
        "quiet": note("There is nothing to silence."),
        "debug": note("Hangs and mismatches are reported in any case."),
        **{f"multi_{name}": _vendor(name) for name in DEVICE_FACTS if name not in ("cpu", "cuda")},
    },
}


def lines_of(launcher: str, flags: Sequence[Flag]) -> list[Line]:
    """The settings that the flags of a launcher are."""
    rules = _RULES[launcher]
    lines: list[Line] = []
    for flag in flags:
        if flag.key and not flag.text:
            lines.append(Line(str(flag), remark=DEFAULT))
        elif launcher == "accelerate" and flag.name == "num_processes":
            lines.append(_processes_per_node(flag, flags))
        elif flag.name.startswith("fsdp_") and launcher == "accelerate":
            lines.append(Line(str(flag), remark=_FSDP, lost=True))
        elif launcher == "accelerate" and flag.name == "machine_rank":
            lines.append(_node_rank(flag, flags))
        elif rule := rules.get(flag.name):
            lines += rule(flag)
        else:
            text = f"Not a flag of {launcher} that is known: look for a setting of the same meaning."
            lines.append(Line(str(flag), remark=text, lost=True))
    if not any(line.name == "NPROC_PER_NODE" for line in lines):
        lines += _default_processes(launcher, lines)
    return lines


def _nodes(flags: Sequence[Flag]) -> str:
    return next((each.text for each in flags if each.name == "num_machines"), "1")


def _node_rank(flag: Flag, flags: Sequence[Flag]) -> Line:
    if _nodes(flags) == "1":
        return Line(str(flag), remark=DEFAULT)
    return Line(str(flag), "NODE_RANK", flag.text, "Of this node: each node has its own.")


def _processes_per_node(flag: Flag, flags: Sequence[Flag]) -> Line:
    """accelerate counts the processes of all nodes."""
    processes, nodes = whole(flag.text), whole(_nodes(flags))
    if processes is None or not nodes or processes % nodes:
        remark = "Not a multiple of the number of nodes: set NPROC_PER_NODE."
        return Line(str(flag), remark=remark, lost=True)
    return Line(str(flag), "NPROC_PER_NODE", str(processes // nodes))


def _default_processes(launcher: str, lines: Sequence[Line]) -> Iterable[Line]:
    if launcher in ("python", "torchrun"):
        yield Line(f"{launcher} without a number of processes starts one", "NPROC_PER_NODE", "1")
    elif not any(line.name == "accelerate_config" for line in lines):
        yield Line(f"{launcher} without a number of processes: one for each device", "NPROC_PER_NODE", "auto")
