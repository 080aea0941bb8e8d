"""Cluster: how many nodes, which one this is, where node 0 is. Mapped from each platform's variables."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from sdjob.problems import Problem, bad_setting
from sdlaunch.cluster.devices import Devices
from sdlaunch.settings.options import LaunchOptions

Environ = Mapping[str, str]
DEFAULT_PORT = 29400


@dataclass(frozen=True)
class Cluster:
    """Where the processes of a job run."""

    nodes: int
    node_rank: int
    endpoint: str | None  # host:port of node 0; None on a single node
    nproc_per_node: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.nproc_per_node


@dataclass(frozen=True)
class Said:
    """One value that a platform states, and the variable that states it."""

    value: str
    variable: str
    derived: bool = False  # from a list of hosts: a guess at the network, which any stated address overrides


@dataclass(frozen=True)
class Claim:
    """What one platform's variables say; None: they do not say."""

    nodes: Said | None = None
    node_rank: Said | None = None
    address: Said | None = None
    port: Said | None = None
    nproc: Said | None = None


@dataclass(frozen=True)
class Resolved:
    """The cluster, the sources of its values by the names that users type, and what is wrong with them."""

    cluster: Cluster
    sources: Mapping[str, str]
    problems: tuple[Problem, ...]


# --- platforms: one pure function each ---------------------------------------------------------------


def _say(environ: Environ, *variables: str) -> Said | None:
    """The first of these variables that is set and not empty."""
    return next((Said(environ[name], name) for name in variables if environ.get(name)), None)


def _say_some(environ: Environ, variable: str) -> Said | None:
    """A number of devices; 0, on a machine without any, says nothing of processes."""
    return _say(environ, variable) if environ.get(variable) != "0" else None


def _torchrun_input(environ: Environ) -> Claim:
    """PET_*: Kubeflow's trainers, and whoever configures torchrun through its environment."""
    host, port = _host_and_port(environ.get("PET_RDZV_ENDPOINT", ""))
    return Claim(
        _say(environ, "PET_NNODES"),
        _say(environ, "PET_NODE_RANK"),
        _say(environ, "PET_MASTER_ADDR") or (Said(host, "PET_RDZV_ENDPOINT") if host else None),
        _say(environ, "PET_MASTER_PORT") or (Said(port, "PET_RDZV_ENDPOINT") if port else None),
        _say(environ, "PET_NPROC_PER_NODE"),
    )


def _host_and_port(endpoint: str) -> tuple[str, str]:
    """`host:port`, `host`, `[fd00::1]:port` or `fd00::1`; "" for what is not there."""
    if endpoint.startswith("["):
        host, _, rest = endpoint[1:].partition("]")
        return host, rest.removeprefix(":")
    if endpoint.count(":") > 1:
        return endpoint, ""
    host, _, port = endpoint.partition(":")
    return host, port


def _nodes_as_world(environ: Environ) -> Claim:
    """PAI-DLC, Volcano, early PyTorchJob: WORLD_SIZE and RANK count nodes, not processes."""
    if environ.get("PET_NNODES") or "LOCAL_RANK" in environ or "MASTER_ADDR" not in environ:
        return Claim()
    return Claim(
        _say(environ, "WORLD_SIZE"),
        _say(environ, "RANK", "VC_TASK_INDEX", "VK_TASK_INDEX"),
        _say(environ, "MASTER_ADDR"),
        _say(environ, "MASTER_PORT"),
    )


def _sagemaker(environ: Environ) -> Claim:
    hosts = _hosts_of(environ.get("SM_HOSTS", ""))
    current = environ.get("SM_CURRENT_HOST", "")
    return Claim(
        Said(str(len(hosts)), "SM_HOSTS") if hosts else _say(environ, "SM_HOST_COUNT"),
        Said(str(hosts.index(current)), "SM_CURRENT_HOST")
        if current in hosts
        else _say(environ, "SM_CURRENT_HOST_RANK"),
        _say(environ, "SM_MASTER_ADDR") or (Said(hosts[0], "SM_HOSTS", derived=True) if hosts else None),
        _say(environ, "SM_MASTER_PORT"),
        _say_some(environ, "SM_NUM_GPUS"),
    )


def _hosts_of(text: str) -> list[str]:
    try:
        hosts = json.loads(text)
    except ValueError:
        return []
    return sorted(str(host) for host in hosts) if isinstance(hosts, list) else []


def _slurm(environ: Environ) -> Claim:
    """One launcher per node, as `srun --ntasks-per-node=1` starts it."""
    if "SLURM_PROCID" not in environ:
        return Claim()
    nodes = _say(environ, "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
    first = _first_slurm_host(environ.get("SLURM_JOB_NODELIST", ""))
    return Claim(
        nodes,
        _say(environ, "SLURM_NODEID"),
        Said(first, "SLURM_JOB_NODELIST", derived=True) if first else None,
    )


def _first_slurm_host(nodelist: str) -> str:
    """`gpu[003-004,7],x1` → gpu003; `rack[1-2]n[1-4]-ib` → rack1n1-ib."""
    first = re.match(r"(?:[^\[,\s]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0]) if first else ""


def _volcengine(environ: Environ) -> Claim:
    return Claim(
        _say(environ, "MLP_WORKER_NUM"),
        _say(environ, "MLP_ROLE_INDEX"),
        _say(environ, "MLP_WORKER_0_HOST"),
        _say(environ, "MLP_WORKER_0_PORT"),
        _say_some(environ, "MLP_WORKER_GPU"),
    )


def _skypilot(environ: Environ) -> Claim:
    addresses = environ.get("SKYPILOT_NODE_IPS", "").split()
    return Claim(
        _say(environ, "SKYPILOT_NUM_NODES"),
        _say(environ, "SKYPILOT_NODE_RANK"),
        Said(addresses[0], "SKYPILOT_NODE_IPS", derived=True) if addresses else None,
        None,
        _say_some(environ, "SKYPILOT_NUM_GPUS_PER_NODE"),
    )


def _dstack(environ: Environ) -> Claim:
    return Claim(
        _say(environ, "DSTACK_NODES_NUM"),
        _say(environ, "DSTACK_NODE_RANK"),
        _say(environ, "DSTACK_MASTER_NODE_IP"),
        None,
        _say_some(environ, "DSTACK_GPUS_PER_NODE"),
    )


PLATFORMS: tuple[Callable[[Environ], Claim], ...] = (
    _torchrun_input,
    _sagemaker,
    _volcengine,
    _skypilot,
    _dstack,
    _slurm,
    _nodes_as_world,  # last: `resolve` looks at it in the light of the others
)


# --- one cluster from all of them --------------------------------------------------------------------

_NAMES = {
    "nodes": "NNODES",
    "node_rank": "NODE_RANK",
    "address": "MASTER_ADDR",
    "port": "MASTER_PORT",
    "nproc": "NPROC_PER_NODE",
}


def resolve(
    options: LaunchOptions,
    sources: Mapping[str, str],
    environ: Environ,
    devices: Devices,
    *,
    numbered: bool = False,
) -> Resolved:
    """The cluster. What users set themselves (`sources` says where) goes before what platforms say.

    `numbered`: the job goes to a platform that will tell each node its number and the address of the first."""
    claims = [_own(options, sources), *(platform(environ) for platform in PLATFORMS)]
    problems: list[Problem] = []
    nproc, why = _processes(_first(claims, "nproc"), devices, problems)
    *others, world = claims
    claims = [*others, _in_nodes(world, others, nproc)]
    problems += [
        *_contradictions(claims),
        *_processes_of_one_node(world, others, nproc),
        *_misplaced(environ),
    ]
    first = Claim(*(_first(claims, quantity.name) for quantity in fields(Claim)))
    nodes = _number(first.nodes, 1, problems, least=1)
    rank = _number(first.node_rank, 0, problems)
    port = _number(first.port, DEFAULT_PORT, problems)
    if nodes > 1:
        problems += [] if numbered else _half_set(first, nodes)
    elif first.node_rank and rank > 0:
        problems.append(
            bad_setting("NODE_RANK", f"{rank} without a number of nodes", "Set NNODES, or unset NODE_RANK.")
        )
    if nodes > 1 and rank >= nodes:
        problems.append(
            bad_setting(
                "NODE_RANK", f"{rank} with NNODES={nodes}", f"Nodes count from 0: use 0 to {nodes - 1}."
            )
        )
    address = first.address.value if first.address else "localhost"
    host = f"[{address}]" if ":" in address and not address.startswith("[") else address
    used = {
        _NAMES[quantity.name]: said.variable
        for quantity in fields(Claim)
        if (said := getattr(first, quantity.name)) is not None
    }
    return Resolved(
        Cluster(nodes, rank, f"{host}:{port}" if nodes > 1 else None, nproc),
        used | {"NPROC_PER_NODE": why},
        tuple(problems),
    )


def _own(options: LaunchOptions, sources: Mapping[str, str]) -> Claim:
    """What users set: NNODES, … from whatever source."""

    def said(name: str) -> Said | None:
        value = getattr(options, name.lower())
        return Said(str(value), sources[name]) if name in sources and value is not None else None

    nproc = said("NPROC_PER_NODE")
    return Claim(said("NNODES"), said("NODE_RANK"), said("MASTER_ADDR"), said("MASTER_PORT"), nproc)


def _first(claims: list[Claim], quantity: str) -> Said | None:
    return next((said for claim in claims if (said := getattr(claim, quantity)) is not None), None)


def _in_nodes(world: Claim, others: list[Claim], nproc: int) -> Claim:
    """WORLD_SIZE and RANK in nodes, where NNODES × NPROC_PER_NODE shows that they count processes."""
    nodes, size, rank = _whole(_first(others, "nodes")), _whole(world.nodes), _whole(world.node_rank)
    if nodes is None or nproc == 1 or size != nodes * nproc or (rank or 0) % nproc:
        return world
    return replace(
        world,
        nodes=world.nodes and replace(world.nodes, value=str(nodes)),
        node_rank=world.node_rank and replace(world.node_rank, value=str((rank or 0) // nproc)),
    )


def _processes_of_one_node(world: Claim, others: list[Claim], nproc: int) -> list[Problem]:
    """As many "nodes" as processes, and all on this machine: another launcher's way to say one node."""
    size = _whole(world.nodes)
    if _first(others, "nodes") or nproc == 1 or size != nproc or not _is_loopback(world.address):
        return []
    address = world.address.value if world.address else ""
    return [
        bad_setting(
            "WORLD_SIZE",
            f"{size} with MASTER_ADDR={address} and {nproc} processes per node: here WORLD_SIZE counts nodes "
            f"({size} nodes on one machine), elsewhere processes (one node of {size})",
            "For one node unset WORLD_SIZE and RANK, or set NNODES=1; for more set NNODES, NODE_RANK and the "
            "address of node 0.",
        )
    ]


def _is_loopback(said: Said | None) -> bool:
    host = said.value.strip("[]") if said else ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _whole(said: Said | None) -> int | None:
    return int(said.value) if said and re.fullmatch(r"[0-9]{1,6}", said.value.strip()) else None


def _contradictions(claims: list[Claim]) -> list[Problem]:
    """Two sources that describe different clusters. Fewer processes than a platform offers are no mistake."""
    found = []
    for quantity in ("nodes", "node_rank", "address"):
        said = [value for claim in claims if (value := getattr(claim, quantity)) is not None]
        said = [value for value in said if not value.derived] or said
        for other in said[1:]:
            if other.value != said[0].value:
                found.append(
                    bad_setting(
                        _NAMES[quantity],
                        f"{said[0].value} ({said[0].variable}) and {other.value} ({other.variable})",
                        "They contradict each other: unset the wrong one.",
                    )
                )
    return found


def _misplaced(environ: Environ) -> list[Problem]:
    """Launchers that have already started one process per device."""
    if "LOCAL_RANK" in environ and "TORCHELASTIC_RUN_ID" in environ:
        return [
            bad_setting(
                "LOCAL_RANK",
                "torchrun started this launcher",
                "Start train.sh itself, once per node; it starts torchrun.",
            )
        ]
    tasks = environ.get("SLURM_NTASKS_PER_NODE") or environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
    if "SLURM_PROCID" in environ and re.match(r"\d+", tasks) and int(re.split(r"\D", tasks)[0]) > 1:
        return [
            bad_setting(
                "SLURM_NTASKS_PER_NODE",
                f"{tasks}: SLURM starts one launcher per task",
                "Use --ntasks-per-node=1; the launcher starts the processes of its node.",
            )
        ]
    return []


def _number(said: Said | None, otherwise: int, problems: list[Problem], least: int = 0) -> int:
    if said is None:
        return otherwise
    if re.fullmatch(r"[0-9]{1,6}", said.value.strip()) and int(said.value) >= least:
        return int(said.value)
    remedy = f"It must be a whole number from {least} on."
    problems.append(bad_setting(said.variable, f"found {said.value!r}", remedy))
    return otherwise


def _processes(said: Said | None, devices: Devices, problems: list[Problem]) -> tuple[int, str]:
    """Processes on this node, and why so many."""
    word = said.value.strip().lower() if said else "auto"
    origin = said.variable if said else "default"
    if word in ("auto", "gpu"):
        if devices.kind != "cpu":
            return max(devices.count or 1, 1), f"{origin} ({word}: one per {devices.kind} device)"
        return 1, f"{origin} ({word}: one on a CPU)"
    if word == "cpu":
        return devices.cores, f"{origin} (cpu: one per core)"
    return _number(said, 1, problems, least=1), origin


def _half_set(claim: Claim, nodes: int) -> list[Problem]:
    return [
        bad_setting(name, f"not set, with {nodes} nodes", f"Set {name}: {what}.")
        for name, said, what in (
            ("NODE_RANK", claim.node_rank, f"the number of this node, 0 to {nodes - 1}"),
            ("MASTER_ADDR", claim.address, "the name or address of node 0, the same on all nodes"),
        )
        if said is None
    ]
