"""One Cluster (nodes, processes, address of node 0) from what users and platforms state about it."""

from __future__ import annotations

import functools
import ipaddress
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sdjob.problems import Problem, bad_setting
from sdlaunch.cluster import route
from sdlaunch.cluster.devices import Devices
from sdlaunch.cluster.platforms import PLATFORMS, Claim, Environ, Stated
from sdlaunch.cluster.route import Route
from sdlaunch.cluster.shared_variables import other_frameworks, world_size
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.timeouts import NoAnswer, Task

DEFAULT_PORT = 29400
_LOOK_UP = 5.0  # seconds; a job itself waits longer
_NAMES = {  # of the fields of a Claim, in their order, as users type them
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
    route: Route | None = None  # to node 0; None on a single node, and where it is not known yet

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
    """The cluster. What users set themselves (`sources` says where) takes precedence over what platforms state.

    `assigns_ranks`: the job goes to a platform that sets the rank of each node and the address of node 0.
    """
    own, platforms = _own(options, sources), [platform.claim(environ) for platform in PLATFORMS.values()]
    platforms.append(other_frameworks(environ))
    others = [own, *platforms]
    problems = [claim.refused for claim in platforms if claim.refused]
    nproc, why = _processes(_first(others, "nproc"), devices, problems)
    world = world_size(environ)
    if _whole(own.nodes) == 1:
        claims = [_alone(own, [*platforms, world])]
    else:
        problems += _processes_of_one_node(world, others, nproc)
        claims = [*others, _in_nodes(world, others, nproc)]
        problems += _contradictions(claims)
        if _first(claims, "nodes") is None and not assigns_ranks:
            problems += [claim.unclear for claim in claims if claim.unclear][:1]
    first = Claim(*(_first(claims, name) for name in _NAMES))
    cluster = _cluster(first, nproc, problems)
    if cluster.nodes > 1 and not assigns_ranks:
        problems += _half_set(first, cluster.nodes)
    stated = {_NAMES[name]: each.variable for name in _NAMES if (each := getattr(first, name))}
    return Resolved(cluster, stated | {"NPROC_PER_NODE": why}, tuple(problems))


def with_route(resolved: Resolved) -> tuple[Resolved, tuple[str, ...]]:
    """The cluster with the route to node 0, or a warning that there is none yet."""
    cluster = resolved.cluster
    if cluster.endpoint is None or resolved.problems:
        return resolved, ()
    find = Task(functools.partial(route.find, cluster.endpoint, cluster.node_rank))
    try:
        found = find.result(time.monotonic() + _LOOK_UP)
        return replace(resolved, cluster=replace(cluster, route=found)), ()
    except NoAnswer:
        reason = f"no answer within {_LOOK_UP:g} s"
    except OSError as error:
        reason = error.strerror or str(error)
    host, _ = route.host_and_port(cluster.endpoint)
    stated = f"{host} ({resolved.sources['MASTER_ADDR']})"
    return resolved, (f"MASTER_ADDR: {stated} cannot be looked up: {reason}; the job waits for it",)


def _alone(own: Claim, others: Sequence[Claim]) -> Claim:
    """NNODES=1 means this node only, whatever a platform states; a NODE_RANK with it is the platform's."""
    has_more = any(claim.unclear or (claim.nodes and claim.nodes.value != "1") for claim in others)
    return replace(own, node_rank=None) if has_more else own


def _own(options: LaunchOptions, sources: Mapping[str, str]) -> Claim:
    """What users set: NNODES, … from any source."""

    def stated(name: str) -> Stated | None:
        value = getattr(options, name.lower())
        return Stated(str(value), sources[name]) if name in sources and value is not None else None

    return Claim(*(stated(name) for name in _NAMES.values()))


def _first(claims: Sequence[Claim], quantity: str) -> Stated | None:
    return next((stated for claim in claims if (stated := getattr(claim, quantity)) is not None), None)


def _cluster(claim: Claim, nproc: int, problems: list[Problem]) -> Cluster:
    """The cluster of these values; those that cannot be used are replaced, and added to the problems."""
    nodes = _number(claim.nodes, 1, problems, least=1)
    rank = _number(claim.node_rank, 0, problems)
    port = _number(claim.port, DEFAULT_PORT, problems, least=1, most=65535)
    if nodes == 1 and rank > 0:
        remedy = "Set NNODES, or unset NODE_RANK."
        problems.append(bad_setting("NODE_RANK", f"{rank} without a number of nodes", remedy))
    elif rank >= nodes:
        remedy = f"Nodes count from 0: use 0 to {nodes - 1}."
        problems.append(bad_setting("NODE_RANK", f"{rank} with NNODES={nodes}", remedy))
    address = claim.address.value if claim.address else "localhost"
    if claim.address and (wrong := _address_problem(claim.address)):
        problems.append(wrong)
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


def _address_problem(stated: Stated) -> Problem | None:
    """What keeps an address from being the name or IP address of node 0; None: nothing."""
    text, remedy = stated.value, "Write the name or IP address of node 0 only"
    host, _, rest = text[1:].partition("]") if text.startswith("[") else (text, "", "")
    found, port = "", ". Its port is MASTER_PORT"
    ip = None if rest else _ip(host)
    if ip is not None:
        if ip.is_unspecified:
            found, port = "means every address of a machine", ", as the other nodes reach it"
    elif "://" in text:
        found = "has a scheme"
    elif re.search(r"\s", text):
        found, port = "has a space or a line break", ""
    elif re.fullmatch(r"(\[.*\]|[^\[\]:]*):\d*", text):
        found = "has a port"
    elif not re.fullmatch(r"[\w.-]+", text):
        found, port = "is neither a host name nor an IP address", ""
    if not found:
        return None
    return bad_setting("MASTER_ADDR", f"{text!r} ({stated.variable}) {found}", f"{remedy}{port}.")


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _number(
    stated: Stated | None, default: int, problems: list[Problem], least: int = 0, most: int | None = None
) -> int:
    number = _whole(stated)
    if stated and (number is None or number < least or (most and number > most)):
        limits = f"from {least} to {most}" if most else f"of at least {least}"
        remedy = f"It must be a whole number {limits}."
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
    ip = _ip(host)
    return host.lower() == "localhost" if ip is None else ip.is_loopback


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


def _half_set(claim: Claim, nodes: int) -> list[Problem]:
    """What every node of several has to be given."""
    source = claim.nodes.variable if claim.nodes else "NNODES"
    return [
        bad_setting(
            name,
            f"not set, with {nodes} nodes ({source})",
            f"Set {name}: {meaning}; or NNODES=1 to train on this node only.",
        )
        for name, stated, meaning in (
            ("NODE_RANK", claim.node_rank, f"the number of this node, 0 to {nodes - 1}"),
            ("MASTER_ADDR", claim.address, "the name or address of node 0, the same on all nodes"),
        )
        if stated is None
    ]
