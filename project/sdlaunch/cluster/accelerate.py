"""`accelerate launch` instead of torchrun: its flags, and the configuration file that it may be given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from sdjob import reading
from sdjob.formatting import counted
from sdjob.problems import Problem, bad_setting, no_hardware
from sdjob.settings.run_spec import RunSpec
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.settings.options import LaunchOptions

MODULE = "accelerate.commands.launch"
# These shard or move the model, which is the job of the worker's plugin.
_OTHER_STRATEGIES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA", "TPU")


@dataclass(frozen=True)
class Config:
    """The top-level scalars of an accelerate configuration file, as they are spelled."""

    path: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def number(self, name: str) -> int | None:
        text = self.values.get(name, "")
        return int(text) if text.isdecimal() else None


def read(options: LaunchOptions) -> Config:
    """The file that `accelerate_config` names, with the problems of using it."""
    path, is_used = options.accelerate_config, options.launcher == "accelerate"
    values: dict[str, str] = {}
    problems = []
    if is_used and find_spec("accelerate") is None:
        remedy = "Install: python -m pip install accelerate; or use launcher=torchrun."
        problems.append(no_hardware("launcher", "accelerate is not installed for this Python", remedy))
    if path and not is_used:
        remedy = "Use launcher=accelerate, or unset accelerate_config."
        problems.append(bad_setting("accelerate_config", f"set, with launcher={options.launcher}", remedy))
    elif path:
        values, wrong = _scalars(path)
        problems += wrong
    return Config(path, values, tuple(problems))


def _scalars(path: str) -> tuple[dict[str, str], list[Problem]]:
    import yaml

    remedy = "Give accelerate_config the path of a file made by `accelerate config`."
    try:
        text = reading.content(Path(path), reading.MESSAGE, patience=reading.PATIENCE).decode()
        root = reading.yaml_of(text, yaml.BaseLoader)
        if isinstance(root, dict):
            return {str(name): value for name, value in root.items() if isinstance(value, str)}, []
        found = f"{path} is not a mapping"
    except (OSError, UnicodeDecodeError) as error:
        found = f"{path}: {getattr(error, 'strerror', error)}"
    except ValueError as error:
        found, remedy = f"{path}: {error}", "Fix the YAML syntax."
    return {}, [bad_setting("accelerate_config", found, remedy)]


def completed(
    options: LaunchOptions, sources: Mapping[str, str], config: Config
) -> tuple[LaunchOptions, dict[str, str]]:
    """The options and their sources, with the processes and nodes of the file where users set none."""
    nodes, processes = config.number("num_machines") or 1, config.number("num_processes")
    stated: dict[str, object] = {}
    if processes and processes % nodes == 0:
        stated["NPROC_PER_NODE"] = str(processes // nodes)
    if nodes > 1:
        stated |= {
            "NNODES": nodes,
            "NODE_RANK": config.number("machine_rank"),
            "MASTER_ADDR": config.values.get("main_process_ip"),
            "MASTER_PORT": config.number("main_process_port"),
        }
    new = {name: value for name, value in stated.items() if value is not None and name not in sources}
    where = f"accelerate config {config.path}"
    return (
        options.model_copy(update={name.lower(): value for name, value in new.items()}),
        {**sources, **dict.fromkeys(new, where)},
    )


def contradictions(config: Config, spec: RunSpec, cluster: Cluster) -> list[Problem]:
    """Values of the file that differ from the plan."""
    remedy = "Change one of them, so that both agree."
    return [
        bad_setting(
            "accelerate_config", f"{name}: {config.values[name]} in {config.path}, and {ours}", remedy
        )
        for name, ours in _differences(config, spec, cluster)
    ]


def _differences(config: Config, spec: RunSpec, cluster: Cluster) -> Iterator[tuple[str, str]]:
    """(name, what the plan says)"""
    values, number = config.values, config.number
    if number("num_processes") not in (None, cluster.world_size):
        processes = f"{counted(cluster.nodes, 'node')} × {counted(cluster.nproc_per_node, 'process')}"
        yield "num_processes", f"{processes} (NNODES, NPROC_PER_NODE)"
    if number("num_machines") not in (None, cluster.nodes):
        yield "num_machines", f"NNODES={cluster.nodes}"
    if cluster.nodes > 1 and number("machine_rank") not in (None, cluster.node_rank):
        yield "machine_rank", f"NODE_RANK={cluster.node_rank}"
    if spec.mixed_precision not in ("auto", values.get("mixed_precision", spec.mixed_precision)):
        yield "mixed_precision", f"mixed_precision={spec.mixed_precision}"
    if values.get("distributed_type", "").upper() in _OTHER_STRATEGIES:
        yield "distributed_type", f"plugin={spec.plugin}"
    if values.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        yield "compute_environment", "this machine"
    if values.get("use_cpu", "").lower() == "true" and spec.device != "cpu":
        yield "use_cpu", f"device={spec.device}"


def flags(spec: RunSpec, cluster: Cluster, config_path: str | None) -> tuple[str, ...]:
    """The flags of `accelerate launch` up to the program.

    `--cpu` starts one process whatever `--num_processes` says; `--multi_gpu` starts all of them on any device,
    and ACCELERATE_USE_CPU in the environment keeps them on the CPU.
    """
    address, _, port = (cluster.endpoint or ":0").rpartition(":")
    if cluster.world_size == 1:
        device = ("--cpu",) if spec.device == "cpu" else ()
    else:
        device = ("--multi_gcu",) if spec.device == "gcu" else ("--multi_gpu",)
    return (
        *([f"--config_file={config_path}"] if config_path else []),
        *device,
        f"--num_processes={cluster.world_size}",
        f"--num_machines={cluster.nodes}",
        f"--machine_rank={cluster.node_rank}",
        *([f"--main_process_ip={address}"] if address else []),
        f"--main_process_port={port}",
        f"--mixed_precision={'no' if spec.mixed_precision == 'auto' else spec.mixed_precision}",
        "--dynamo_backend=no",
    )
