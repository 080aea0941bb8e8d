"""What each platform's variables state about nodes and processes: one function and one row of PLATFORMS each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass

from sdjob import reading
from sdjob.problems import Problem, bad_setting

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
    address: Stated | None = None  # host name or IP address of node 0
    port: Stated | None = None
    nproc: Stated | None = None  # processes per node
    _: KW_ONLY
    refused: Problem | None = None  # several launchers were started on this node
    unclear: Problem | None = None  # several nodes or processes that cannot be planned until NNODES is set


def stated(environ: Environ, *variables: str) -> Stated | None:
    """The first of these variables that is set and not empty."""
    return next((Stated(environ[name], name) for name in variables if environ.get(name)), None)


def job_id(environ: Environ) -> str | None:
    """What a platform calls this job, on all of its nodes alike; None: it does not say."""
    found = stated(environ, *(each.job_id for each in PLATFORMS.values() if each.job_id))
    return re.sub(r"[^\w.:-]", "-", found.value) if found else None


def _devices(environ: Environ, variable: str) -> Stated | None:
    """A number of devices, one process each; 0, on a machine without any, says nothing about processes."""
    return stated(environ, variable) if environ.get(variable) != "0" else None


def _parsed(value: object, variable: str, *, derived: bool = False) -> Stated | None:
    """A value computed from a variable; None or "": the variable does not contain it."""
    return None if value in (None, "") else Stated(str(value), variable, derived)


def _one_per_process(found: str, variable: str, remedy: str) -> Problem:
    """The problem of a start method that starts one launcher per device or process."""
    return bad_setting(
        variable, f"{found}: one launcher per process", f"{remedy}: the launcher starts the others."
    )


def _torchrun(environ: Environ) -> Claim:
    """PET_*: the defaults of torchrun's flags, which Kubeflow's trainers and some users set."""
    if "LOCAL_RANK" in environ and "TORCHELASTIC_RUN_ID" in environ:
        remedy = "Start train.sh itself, once per node; it starts torchrun."
        return Claim(refused=bad_setting("LOCAL_RANK", "torchrun started this launcher", remedy))
    host, port = _host_and_port(environ.get("PET_RDZV_ENDPOINT", ""))
    return Claim(
        nodes=stated(environ, "PET_NNODES"),
        node_rank=stated(environ, "PET_NODE_RANK"),
        address=stated(environ, "PET_MASTER_ADDR") or _parsed(host, "PET_RDZV_ENDPOINT"),
        port=stated(environ, "PET_MASTER_PORT") or _parsed(port, "PET_RDZV_ENDPOINT"),
        nproc=stated(environ, "PET_NPROC_PER_NODE"),
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
        nodes=_parsed(len(hosts) or None, "SM_HOSTS") or stated(environ, "SM_HOST_COUNT"),
        node_rank=_parsed(rank, "SM_CURRENT_HOST") or stated(environ, "SM_CURRENT_HOST_RANK"),
        address=stated(environ, "SM_MASTER_ADDR")
        or _parsed(next(iter(hosts), None), "SM_HOSTS", derived=True),
        port=stated(environ, "SM_MASTER_PORT"),
        nproc=_devices(environ, "SM_NUM_GPUS"),
    )


def _host_list(text: str) -> list[str]:
    try:
        hosts = reading.json_of(text)
    except ValueError:
        return []
    return sorted(str(host) for host in hosts) if isinstance(hosts, list) else []


def _volcengine(environ: Environ) -> Claim:
    return Claim(
        nodes=stated(environ, "MLP_WORKER_NUM"),
        node_rank=stated(environ, "MLP_ROLE_INDEX"),
        address=stated(environ, "MLP_WORKER_0_HOST"),
        port=stated(environ, "MLP_WORKER_0_PORT"),
        nproc=_devices(environ, "MLP_WORKER_GPU"),
    )


def _skypilot(environ: Environ) -> Claim:
    hosts = environ.get("SKYPILOT_NODE_IPS", "").split()
    return Claim(
        nodes=stated(environ, "SKYPILOT_NUM_NODES"),
        node_rank=stated(environ, "SKYPILOT_NODE_RANK"),
        address=_parsed(next(iter(hosts), None), "SKYPILOT_NODE_IPS", derived=True),
        nproc=_devices(environ, "SKYPILOT_NUM_GPUS_PER_NODE"),
    )


def _dstack(environ: Environ) -> Claim:
    return Claim(
        nodes=stated(environ, "DSTACK_NODES_NUM"),
        node_rank=stated(environ, "DSTACK_NODE_RANK"),
        address=stated(environ, "DSTACK_MASTER_NODE_IP"),
        nproc=_devices(environ, "DSTACK_GPUS_PER_NODE"),
    )


def _runpod(environ: Environ) -> Claim:
    """Instant Clusters; WORLD_SIZE counts GPUs there."""
    return Claim(
        nodes=stated(environ, "NUM_NODES"),
        address=stated(environ, "PRIMARY_ADDR"),
        port=stated(environ, "PRIMARY_PORT"),
        nproc=_devices(environ, "NUM_TRAINERS"),
    )


def _azureml(environ: Environ) -> Claim:
    """A PyTorch job with process_count_per_instance=1: one launcher per node, with a LOCAL_RANK of 0."""
    if not environ.get("WORLD_SIZE") or not any(name.startswith("AZUREML_") for name in environ):
        return Claim()
    nodes, rank = environ.get("AZUREML_NODE_COUNT"), environ.get("NODE_RANK") or environ.get("RANK")
    per_device = (environ.get("LOCAL_RANK") or "0") != "0" or (environ.get("RANK") or rank) != rank
    if per_device or (nodes and nodes != environ["WORLD_SIZE"]):
        found = f"{environ['WORLD_SIZE']!r} with RANK={environ.get('RANK')!r}, NODE_RANK={rank!r}"
        remedy = "Set process_count_per_instance: 1 in the job"
        return Claim(refused=_one_per_process(found, "WORLD_SIZE", remedy))
    return Claim(
        nodes=stated(environ, "AZUREML_NODE_COUNT", "WORLD_SIZE"),
        node_rank=stated(environ, "RANK", "NODE_RANK"),
    )


def _ascend(environ: Environ) -> Claim:
    """MindCluster: WORLD_SIZE counts processes, RANK nodes, and LOCAL_RANK lists the devices of this node."""
    if not is_ascend(environ):
        return Claim()
    size, local = environ["WORLD_SIZE"], environ["LOCAL_WORLD_SIZE"]
    whole = all(re.fullmatch(r"[1-9][0-9]{0,5}", number) for number in (size, local))
    if not whole or int(size) % int(local):
        found = f"{size!r} processes, with LOCAL_WORLD_SIZE={local!r} on each node"
        return Claim(unclear=bad_setting("WORLD_SIZE", found, "Set NNODES, NODE_RANK and NPROC_PER_NODE."))
    return Claim(
        nodes=_parsed(int(size) // int(local), "WORLD_SIZE / LOCAL_WORLD_SIZE"),
        node_rank=stated(environ, "RANK"),
        nproc=stated(environ, "LOCAL_WORLD_SIZE"),
    )


def is_ascend(environ: Environ) -> bool:
    """Whether these variables describe a node; a launcher of processes sets a single LOCAL_RANK on each."""
    if not environ.get("WORLD_SIZE") or not environ.get("LOCAL_WORLD_SIZE"):
        return False
    ranks = environ.get("LOCAL_RANK")
    return not ranks or "," in ranks or (ranks == "0" and environ["LOCAL_WORLD_SIZE"] == "1")


def _volcano(environ: Environ) -> Claim:
    """Volcano's lists of hosts, one for each task of a job, and ModelArts, which is built on it."""
    lists = {name: hosts for name, hosts in environ.items() if re.fullmatch(r"VC_\w+_HOSTS", name) and hosts}
    if len(lists) > 1:  # such as master and worker, where RANK and WORLD_SIZE are set, or a sidecar
        if environ.get("WORLD_SIZE"):
            return Claim()
        return Claim(unclear=_unclear_tasks(lists))
    variable, hosts = next(iter(lists.items()), ("", ""))
    nodes = stated(environ, "MA_NUM_HOSTS") or _parsed(len(hosts.split(",")) if hosts else None, variable)
    return Claim(
        nodes=nodes,
        node_rank=stated(environ, "VC_TASK_INDEX", "VK_TASK_INDEX") if nodes else None,
        address=_parsed(hosts.split(",")[0].strip(), variable, derived=True),
        nproc=_devices(environ, "MA_NUM_GPUS"),
    )


def _unclear_tasks(lists: Mapping[str, str]) -> Problem:
    found = f"several tasks with hosts: {', '.join(sorted(lists))}"
    remedy = "Set NNODES, NODE_RANK and MASTER_ADDR, or NNODES=1 to train on this node only."
    return bad_setting(min(lists), found, remedy)


def _mpi(environ: Environ) -> Claim:
    """Open MPI, and the Hydra of MPICH and Intel MPI: one launcher per node, as `mpirun -N 1` starts it."""
    for names, start in (
        (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"), "mpirun -N 1"),
        (("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"), "mpiexec -ppn 1"),
    ):
        size, rank, local = names
        if local not in environ or environ.get(size, "1") == "1":
            continue
        if environ[local] != "1":
            found = f"{environ[local]!r} launchers on this node"
            return Claim(refused=_one_per_process(found, local, f"Start one launcher per node, with {start}"))
        host, port = _host_and_port(environ.get("AZ_BATCH_MASTER_NODE", ""))
        return Claim(
            nodes=stated(environ, size),
            node_rank=stated(environ, rank),
            address=_parsed(host, "AZ_BATCH_MASTER_NODE"),
            port=_parsed(port, "AZ_BATCH_MASTER_NODE"),
        )
    return Claim()


def _slurm(environ: Environ) -> Claim:
    """One launcher per node, as `srun --ntasks-per-node=1` starts it."""
    nodes = stated(environ, "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return Claim()  # mpirun starts its daemons by srun, whose numbers are not those of its ranks
    if not _is_slurm_step(environ):
        return Claim(unclear=_no_step(nodes) if nodes and nodes.value != "1" else None)
    tasks = environ.get("SLURM_NTASKS_PER_NODE") or environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
    count = re.match(r"\d+", tasks)
    if count and int(count[0]) > 1:
        found = f"{tasks} launchers on this node"
        remedy = "Start one launcher per node, with --ntasks-per-node=1"
        return Claim(refused=_one_per_process(found, "SLURM_NTASKS_PER_NODE", remedy))
    first = _first_slurm_host(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", ""))
    return Claim(
        nodes=stated(environ, "SLURM_STEP_NUM_NODES") or nodes,
        node_rank=stated(environ, "SLURM_NODEID"),
        address=_parsed(first, "SLURM_JOB_NODELIST", derived=True),
    )


def _is_slurm_step(environ: Environ) -> bool:
    """Whether srun started this process. A batch script has SLURM_PROCID=0 too, but no number of a step.

    Unless sbatch was called within a step and passed its variables on: only srun sets SLURM_NNODES to the nodes of the
    step.
    """
    nodes, of_step = environ.get("SLURM_NNODES"), environ.get("SLURM_STEP_NUM_NODES")
    is_passed_on = bool(nodes and of_step and nodes != of_step)
    in_step = "SLURM_STEP_ID" in environ or "SLURM_STEPID" in environ
    return (in_step and not is_passed_on) or environ.get("SLURM_PROCID", "0") != "0"


def _no_step(nodes: Stated) -> Problem:
    found = f"{nodes.value} nodes are allocated, and srun did not start this launcher: it would train on this node only"
    remedy = (
        "Start it on every node: srun --ntasks-per-node=1 bash train.sh …; "
        "or set NNODES=1 to train on this node only."
    )
    return bad_setting(nodes.variable, found, remedy)


def _first_slurm_host(nodelist: str) -> str:
    """`gpu[003-004,7],x1` → gpu003; `rack[1-2]n[1-4]-ib` → rack1n1-ib."""
    first = re.match(r"(?:[^\[,\s]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0]) if first else ""


@dataclass(frozen=True)
class Platform:
    """How to read a platform's variables."""

    claim: Callable[[Environ], Claim]
    prefixes: tuple[str, ...]  # of their names: these are not misspelled settings
    job_id: str = ""  # the variable with its name for the job, the same on all nodes; "": none


# The first of them that states a value wins; two that state different values are reported.
PLATFORMS: Mapping[str, Platform] = {
    "torchrun": Platform(_torchrun, ("PET_",), "PET_RDZV_ID"),
    "sagemaker": Platform(_sagemaker, ("SM_",), "TRAINING_JOB_NAME"),
    "volcengine": Platform(_volcengine, ("MLP_",)),
    "skypilot": Platform(_skypilot, ("SKYPILOT_",), "SKYPILOT_TASK_ID"),
    "dstack": Platform(_dstack, ("DSTACK_",), "DSTACK_RUN_NAME"),
    "runpod": Platform(_runpod, ("RUNPOD_", "NUM_NODES", "NUM_TRAINERS", "PRIMARY_ADDR", "PRIMARY_PORT")),
    "azureml": Platform(_azureml, ("AZUREML_", "AZ_BATCH")),
    "ascend": Platform(_ascend, ("ASCEND_",)),
    "volcano": Platform(_volcano, ("VC_", "VK_", "MA_")),
    "mpi": Platform(_mpi, ("OMPI_", "PMIX_", "PMI_", "MPI_", "I_MPI_", "HYDRA_")),
    "slurm": Platform(_slurm, ("SLURM_",), "SLURM_JOB_ID"),
}
