"""What each platform's variables state about nodes and processes: one function and one line of PLATFORMS each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Environ = Mapping[str, str]


@dataclass(frozen=True)
class Stated:
    """One value, and the variable that states it."""

    value: str
    variable: str
    derived: bool = False  # from a list of hosts: a guess at the network, which any stated address overrides


@dataclass(frozen=True)
class Claim:
    """What one platform states about a cluster; None: nothing."""

    nodes: Stated | None = None
    node_rank: Stated | None = None
    address: Stated | None = None  # of node 0
    port: Stated | None = None
    nproc: Stated | None = None  # processes per node


def _stated(environ: Environ, *variables: str) -> Stated | None:
    """The first of these variables that is set and not empty."""
    return next((Stated(environ[name], name) for name in variables if environ.get(name)), None)


def _devices(environ: Environ, variable: str) -> Stated | None:
    """A number of devices, one process each; 0, on a machine without any, says nothing about processes."""
    return _stated(environ, variable) if environ.get(variable) != "0" else None


def _parsed(value: object, variable: str, *, derived: bool = False) -> Stated | None:
    """A value computed from a variable; None or "": the variable does not contain it."""
    return None if value in (None, "") else Stated(str(value), variable, derived)


def _torchrun(environ: Environ) -> Claim:
    """PET_*: the defaults of torchrun's flags, which Kubeflow's trainers and some users set."""
    host, port = _host_and_port(environ.get("PET_RDZV_ENDPOINT", ""))
    return Claim(
        nodes=_stated(environ, "PET_NNODES"),
        node_rank=_stated(environ, "PET_NODE_RANK"),
        address=_stated(environ, "PET_MASTER_ADDR") or _parsed(host, "PET_RDZV_ENDPOINT"),
        port=_stated(environ, "PET_MASTER_PORT") or _parsed(port, "PET_RDZV_ENDPOINT"),
        nproc=_stated(environ, "PET_NPROC_PER_NODE"),
    )


def _host_and_port(endpoint: str) -> tuple[str, str]:
    """Parse `host:port`, `host`, `[fd00::1]:port` or `fd00::1`; "" for a missing half."""
    if endpoint.startswith("["):
        host, _, rest = endpoint[1:].partition("]")
        return host, rest.removeprefix(":")
    if endpoint.count(":") > 1:
        return endpoint, ""
    host, _, port = endpoint.partition(":")
    return host, port


def _sagemaker(environ: Environ) -> Claim:
    hosts = _host_list(environ.get("SM_HOSTS", ""))
    current = environ.get("SM_CURRENT_HOST", "")
    rank = hosts.index(current) if current in hosts else None
    return Claim(
        nodes=_parsed(len(hosts) or None, "SM_HOSTS") or _stated(environ, "SM_HOST_COUNT"),
        node_rank=_parsed(rank, "SM_CURRENT_HOST") or _stated(environ, "SM_CURRENT_HOST_RANK"),
        address=_stated(environ, "SM_MASTER_ADDR")
        or _parsed(next(iter(hosts), None), "SM_HOSTS", derived=True),
        port=_stated(environ, "SM_MASTER_PORT"),
        nproc=_devices(environ, "SM_NUM_GPUS"),
    )


def _host_list(text: str) -> list[str]:
    try:
        hosts = json.loads(text)
    except ValueError:
        return []
    return sorted(str(host) for host in hosts) if isinstance(hosts, list) else []


def _volcengine(environ: Environ) -> Claim:
    return Claim(
        nodes=_stated(environ, "MLP_WORKER_NUM"),
        node_rank=_stated(environ, "MLP_ROLE_INDEX"),
        address=_stated(environ, "MLP_WORKER_0_HOST"),
        port=_stated(environ, "MLP_WORKER_0_PORT"),
        nproc=_devices(environ, "MLP_WORKER_GPU"),
    )


def _skypilot(environ: Environ) -> Claim:
    hosts = environ.get("SKYPILOT_NODE_IPS", "").split()
    return Claim(
        nodes=_stated(environ, "SKYPILOT_NUM_NODES"),
        node_rank=_stated(environ, "SKYPILOT_NODE_RANK"),
        address=_parsed(next(iter(hosts), None), "SKYPILOT_NODE_IPS", derived=True),
        nproc=_devices(environ, "SKYPILOT_NUM_GPUS_PER_NODE"),
    )


def _dstack(environ: Environ) -> Claim:
    return Claim(
        nodes=_stated(environ, "DSTACK_NODES_NUM"),
        node_rank=_stated(environ, "DSTACK_NODE_RANK"),
        address=_stated(environ, "DSTACK_MASTER_NODE_IP"),
        nproc=_devices(environ, "DSTACK_GPUS_PER_NODE"),
    )


def _slurm(environ: Environ) -> Claim:
    """One launcher per node, as `srun --ntasks-per-node=1` starts it."""
    if "SLURM_PROCID" not in environ:
        return Claim()
    first = _first_slurm_host(environ.get("SLURM_JOB_NODELIST", ""))
    return Claim(
        nodes=_stated(environ, "SLURM_NNODES", "SLURM_JOB_NUM_NODES"),
        node_rank=_stated(environ, "SLURM_NODEID"),
        address=_parsed(first, "SLURM_JOB_NODELIST", derived=True),
    )


def _first_slurm_host(nodelist: str) -> str:
    """`gpu[003-004,7],x1` → gpu003; `rack[1-2]n[1-4]-ib` → rack1n1-ib."""
    first = re.match(r"(?:[^\[,\s]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0]) if first else ""


# The first of them that states a value wins; two that state different values are reported.
PLATFORMS: Mapping[str, Callable[[Environ], Claim]] = {
    "torchrun": _torchrun,
    "sagemaker": _sagemaker,
    "volcengine": _volcengine,
    "skypilot": _skypilot,
    "dstack": _dstack,
    "slurm": _slurm,
}


def world_size(environ: Environ) -> Claim:
    """PAI-DLC, Volcano, early PyTorchJob: WORLD_SIZE and RANK count nodes there; `resolve` finds out if they
    count processes here."""
    if environ.get("PET_NNODES") or "LOCAL_RANK" in environ or "MASTER_ADDR" not in environ:
        return Claim()
    return Claim(
        nodes=_stated(environ, "WORLD_SIZE"),
        node_rank=_stated(environ, "RANK", "VC_TASK_INDEX", "VK_TASK_INDEX"),
        address=_stated(environ, "MASTER_ADDR"),
        port=_stated(environ, "MASTER_PORT"),
    )
