"""One Cluster (nodes, processes, address of node 0) from what users and platforms state about it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from sdjob.problems import Problem, bad_setting
from sdlaunch.cluster.devices import Devices
from sdlaunch.cluster.platforms import PLATFORMS, Claim, Environ, Stated, world_size
from sdlaunch.settings.options import LaunchOptions

DEFAULT_PORT = 29400
_NAMES = {  # of the fields of a Claim, as users type them
    "nodes": "NNODES",
    "node_rank": "NODE_RANK",
    "address": "MASTER_ADDR",
    "port": "MASTER_PORT",
    "nproc": "NPROC_PER_NODE",
}


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
class Resolved:
    """The cluster, the sources of its values by the names that users type, and the problems with them."""

    cluster: Cluster
    sources: Mapping[str, str]
    problems: tuple[Problem, ...]


def resolve(
    options: LaunchOptions,
    sources: Mapping[str, str],
    environ: Environ,
    devices: Devices,
    *,
    assigns_ranks: bool = False,
) -> Resolved:
    """The cluster. What users set themselves (`sources` says where) goes before what platforms state.

    `assigns_ranks`: the job goes to a platform that sets the rank of each node and the address of node 0.
    """
    problems = _misplaced(environ)
    others = [_own(options, sources), *(claim(environ) for claim in PLATFORMS.values())]
    nproc, why = _processes(_first(others, "nproc"), devices, problems)
    world = world_size(environ)
    problems += _processes_of_one_node(world, others, nproc)
    claims = [*others, _in_nodes(world, others, nproc)]
    problems += _contradictions(claims)
    first = Claim(**{name: _first(claims, name) for name in _NAMES})
    cluster = _cluster(first, nproc, problems)
    if cluster.nodes > 1 and not assigns_ranks:
        problems += _half_set(first, cluster.nodes)
    stated = {_NAMES[name]: each.variable for name in _NAMES if (each := getattr(first, name))}
    return Resolved(cluster, stated | {"NPROC_PER_NODE": why}, tuple(problems))


def _own(options: LaunchOptions, sources: Mapping[str, str]) -> Claim:
    """What users set: NNODES, … from any source."""

    def stated(name: str) -> Stated | None:
        value = getattr(options, name.lower())
        return Stated(str(value), sources[name]) if name in sources and value is not None else None

    return Claim(**{field.name: stated(_NAMES[field.name]) for field in fields(Claim)})


def _first(claims: Sequence[Claim], quantity: str) -> Stated | None:
    return next((stated for claim in claims if (stated := getattr(claim, quantity)) is not None), None)


def _cluster(claim: Claim, nproc: int, problems: list[Problem]) -> Cluster:
    """The cluster of these values; those that cannot be used are replaced, and added to the problems."""
    nodes = _number(claim.nodes, 1, problems, least=1)
    rank = _number(claim.node_rank, 0, problems)
    port = _number(claim.port, DEFAULT_PORT, problems)
    if nodes == 1 and rank > 0:
        remedy = "Set NNODES, or unset NODE_RANK."
        problems.append(bad_setting("NODE_RANK", f"{rank} without a number of nodes", remedy))
    elif rank >= nodes:
        remedy = f"Nodes count from 0: use 0 to {nodes - 1}."
        problems.append(bad_setting("NODE_RANK", f"{rank} with NNODES={nodes}", remedy))
    address = claim.address.value if claim.address else "localhost"
    host = f"[{address}]" if ":" in address and not address.startswith("[") else address
    return Cluster(nodes, rank, f"{host}:{port}" if nodes > 1 else None, nproc)


def _processes(stated: Stated | None, devices: Devices, problems: list[Problem]) -> tuple[int, str]:
    """Processes on this node, and where that number comes from."""
    value = stated.value.strip().lower() if stated else "auto"
    source = stated.variable if stated else "default"
    if value in ("auto", "gpu"):
        if devices.type != "cpu":
            return max(devices.count or 1, 1), f"{source} ({value}: one per {devices.type} device)"
        return 1, f"{source} ({value}: one on a CPU)"
    if value == "cpu":
        return devices.cores, f"{source} (cpu: one per core)"
    return _number(stated, 1, problems, least=1), source


def _number(stated: Stated | None, default: int, problems: list[Problem], least: int = 0) -> int:
    number = _whole(stated)
    if stated and (number is None or number < least):
        remedy = f"It must be a whole number from {least} on."
        problems.append(bad_setting(stated.variable, f"found {stated.value!r}", remedy))
        return default
    return default if number is None else number


def _whole(stated: Stated | None) -> int | None:
    return int(stated.value) if stated and re.fullmatch(r"[0-9]{1,6}", stated.value.strip()) else None


def _in_nodes(world: Claim, others: Sequence[Claim], nproc: int) -> Claim:
    """WORLD_SIZE and RANK in nodes, where NNODES × NPROC_PER_NODE shows that they count processes."""
    nodes, size, rank = _whole(_first(others, "nodes")), _whole(world.nodes), _whole(world.node_rank) or 0
    if nodes is None or nproc == 1 or size != nodes * nproc or rank % nproc:
        return world
    return replace(
        world,
        nodes=world.nodes and replace(world.nodes, value=str(nodes)),
        node_rank=world.node_rank and replace(world.node_rank, value=str(rank // nproc)),
    )


def _processes_of_one_node(world: Claim, others: Sequence[Claim], nproc: int) -> list[Problem]:
    """As many "nodes" as processes, and all on this machine: how other launchers describe a single node."""
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


def _is_loopback(stated: Stated | None) -> bool:
    host = stated.value.strip("[]") if stated else ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _contradictions(claims: Sequence[Claim]) -> list[Problem]:
    """Two sources that describe different clusters. Fewer processes than a platform offers are not a mistake."""
    problems: list[Problem] = []
    for quantity in ("nodes", "node_rank", "address"):
        stated = [value for claim in claims if (value := getattr(claim, quantity)) is not None]
        stated = [value for value in stated if not value.derived] or stated
        problems += [
            bad_setting(
                _NAMES[quantity],
                f"{stated[0].value} ({stated[0].variable}) and {other.value} ({other.variable})",
                "They contradict each other: unset the wrong one.",
            )
            for other in stated[1:]
            if other.value != stated[0].value
        ]
    return problems


def _misplaced(environ: Environ) -> list[Problem]:
    """Start methods that already started one process per device."""
    if "LOCAL_RANK" in environ and "TORCHELASTIC_RUN_ID" in environ:
        remedy = "Start train.sh itself, once per node; it starts torchrun."
        return [bad_setting("LOCAL_RANK", "torchrun started this launcher", remedy)]
    tasks = environ.get("SLURM_NTASKS_PER_NODE") or environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
    count = re.match(r"\d+", tasks)
    if "SLURM_PROCID" in environ and count and int(count[0]) > 1:
        remedy = "Use --ntasks-per-node=1; the launcher starts the processes of its node."
        found = f"{tasks}: SLURM starts one launcher per task"
        return [bad_setting("SLURM_NTASKS_PER_NODE", found, remedy)]
    return []


def _half_set(claim: Claim, nodes: int) -> list[Problem]:
    """What every node of several has to be given."""
    return [
        bad_setting(name, f"not set, with {nodes} nodes", f"Set {name}: {meaning}.")
        for name, stated, meaning in (
            ("NODE_RANK", claim.node_rank, f"the number of this node, 0 to {nodes - 1}"),
            ("MASTER_ADDR", claim.address, "the name or address of node 0, the same on all nodes"),
        )
        if stated is None
    ]
