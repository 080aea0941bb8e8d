"""The same job for another place: a docker command, a compose file, Kubernetes, SLURM, SkyPilot. Pure."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjob.problems import ExitCode
from sdlaunch.plan import JobPlan

TARGETS = ("docker", "compose", "kubernetes", "slurm", "skypilot")
ASSIGNS_RANKS = (
    "kubernetes",
    "slurm",
    "skypilot",
)  # these tell each node its number, and where the first one is
KINDS = ("trainjob", "job")  # of kubernetes
NAME = "sdjob"
_MOUNTS = {
    "MODEL_DIR": "/mnt/model",
    "DATASET_DIR": "/mnt/dataset",
    "PROJECT_DIR": "/mnt/project",
    "OUTPUT_DIR": "/output",
}
_LAUNCHER = "/opt/sdjob"  # where train.sh is, if the project is another folder
_CLUSTER = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_NOT_SETTINGS_THERE = (*_MOUNTS, *_CLUSTER, "ENV_FILE", "CONFIG_FILE", "image", "shm_size", "gpu_name")
_PORT = 29400
_COMPOSE = """\
# The output folder belongs to you, so the container runs as you: RUN_AS=$(id -u) docker compose up"""
_CLAIM = f"""\
# All nodes write into one folder: make a PersistentVolumeClaim {NAME}-output of the kind ReadWriteMany first,
# or name one that you have."""
_BUCKET = """\
# /output is a bucket, so that the result outlives the machine: name yours. What was written is uploaded in the
# background. Several nodes must see each other's files at once: put a volume that all share in its place."""
_FINAL_CODES = [
    int(code)
    for code in (ExitCode.BAD_SETTING, ExitCode.BAD_INPUT, ExitCode.NO_HARDWARE, ExitCode.OUTPUT_FULL)
]


@dataclass(frozen=True)
class Volume:
    """A folder of the host, and where the job sees it."""

    name: str
    source: str
    target: str
    read_only: bool


@dataclass(frozen=True)
class Task:
    """What every target needs to know."""

    image: str
    gpu_name: str
    shm_size: str
    env: Mapping[str, str]  # settings that differ from their defaults, with the paths of the container
    own_env: Mapping[str, str]  # the same, with the paths of the host
    cluster_env: Mapping[str, str]  # what the user said of nodes
    volumes: tuple[Volume, ...]
    start: str  # train.sh in the container
    own_start: str  # train.sh on the host
    nodes: int
    processes: int
    gpus: int | None  # per node; None: as many as there are; 0: none
    grace: int  # seconds from a stop to the end


def render(job: JobPlan, home: Path, target: str, kind: str = KINDS[0]) -> str:
    """The job as a text for this target."""
    task = _task(job, home)
    match target:
        case "docker":
            return _docker(task)
        case "compose":
            return f"{_COMPOSE}\n{_yaml(_compose(task))}"
        case "kubernetes":
            text = _yaml(*(_trainjob(task) if kind == "trainjob" else _indexed_job(task)))
            return f"{_CLAIM}\n{text}" if task.nodes > 1 else text
        case "slurm":
            return _slurm(task)
        case "skypilot":
            return f"{_BUCKET}\n{_yaml(_skypilot(task))}"
        case _:
            raise ValueError(target)


def _task(job: JobPlan, home: Path) -> Task:
    def value(name: str) -> Any:
        return job.settings[name].value

    volumes = [
        Volume(name.removesuffix("_DIR").lower(), str(value(name)), path, name != "OUTPUT_DIR")
        for name, path in _MOUNTS.items()
    ]
    own_env = {
        name: text
        for name, text in job.given.items()
        if name not in _NOT_SETTINGS_THERE and job.defaults[name] not in (value(name), text)
    }
    env = {name: _inside(text, volumes) for name, text in own_env.items()}
    start = _MOUNTS["PROJECT_DIR"]
    if Path(value("PROJECT_DIR")) != home:
        start = _LAUNCHER
        volumes.append(Volume("launcher", str(home), _LAUNCHER, read_only=True))
        env["PROJECT_DIR"] = _MOUNTS["PROJECT_DIR"]
    processes = job.cluster.nproc_per_node
    named = job.given.get("NPROC_PER_NODE", "auto").isdecimal()
    on_cpu = "device" in job.given and value("device") == "cpu"
    return Task(
        image=value("image"),
        gpu_name=value("gpu_name"),
        shm_size=value("shm_size"),
        env=env,
        own_env=own_env | {name: str(value(name)) for name in _MOUNTS},
        cluster_env={name: job.given[name] for name in _CLUSTER if name in job.given},
        volumes=tuple(volumes),
        start=f"{start}/train.sh",
        own_start=str(home / "train.sh"),
        nodes=job.cluster.nodes,
        processes=processes,
        gpus=0 if on_cpu else processes if named else None,
        grace=math.ceil(job.stop_grace) + 10,
    )


def _inside(text: str, volumes: list[Volume]) -> str:
    """A path below a folder of the host as the container sees it; any other text as it is."""
    for volume in volumes:
        if text == volume.source or text.startswith(volume.source.rstrip("/") + "/"):
            return volume.target + text.removeprefix(volume.source.rstrip("/"))
    return text


def _yaml(*documents: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=10**6).rstrip("\n")


def _dollars(text: str) -> str:
    """Compose and Kubernetes replace $NAME or $(NAME) in values; $$ stands for the character."""
    return text.replace("$", "$$")


def _docker(task: Task) -> str:
    """One option a line. The output folder belongs to whoever starts it, so the container runs as that user."""
    gpus = {None: ["--gpus=all"], 0: []}.get(task.gpus, [f"--gpus={task.gpus}"])
    mounts = [
        ",".join(
            _csv(field)
            for field in (
                "type=bind",
                f"source={volume.source}",
                f"target={volume.target}",
                *(["readonly"] if volume.read_only else []),
            )
        )
        for volume in task.volumes
    ]
    env = [f"{name}={value}" for name, value in {**task.env, **task.cluster_env}.items()]
    options = [
        *([word] for word in gpus),
        [f"--shm-size={task.shm_size}"],
        [f"--stop-timeout={task.grace}"],
        *([["--network=host"]] if task.nodes > 1 else []),
        *(["--mount", mount] for mount in mounts),
        *(["--env", pair] for pair in env),
        [task.image, "bash", task.start],
    ]
    return " \\\n  ".join(["docker run --rm", '--user="$(id -u):0"', *map(shlex.join, options)])


def _csv(text: str) -> str:
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if set(text) & set(',"\n') else text


def _compose(task: Task) -> dict[str, Any]:
    service: dict[str, Any] = {
        "image": task.image,
        "user": "${RUN_AS:-10001}:0",
        "command": ["bash", task.start],
        "environment": {name: _dollars(value) for name, value in {**task.env, **task.cluster_env}.items()},
        "volumes": [
            {
                "type": "bind",
                "source": _dollars(volume.source),
                "target": volume.target,
                "read_only": volume.read_only,
            }
            for volume in task.volumes
        ],
        "shm_size": task.shm_size,
        "stop_grace_period": f"{task.grace}s",
    }
    if task.nodes > 1:
        service["network_mode"] = "host"
    if task.gpus != 0:
        count = task.gpus or "all"
        device = {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return {"services": {NAME: service}}


def _volumes(task: Task) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """volumes and volumeMounts of a pod."""
    quantity = task.shm_size.upper().rstrip("B") + "i"
    volumes: list[dict[str, Any]] = [
        {"name": volume.name, "persistentVolumeClaim": {"claimName": f"{NAME}-output"}}
        if task.nodes > 1 and not volume.read_only
        else {"name": volume.name, "hostPath": {"path": volume.source}}
        for volume in task.volumes
    ]
    mounts: list[dict[str, Any]] = [
        {"name": volume.name, "mountPath": volume.target, "readOnly": volume.read_only}
        for volume in task.volumes
    ]
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": quantity}}
    return [*volumes, shm], [*mounts, {"name": "shm", "mountPath": "/dev/shm"}]


def _env(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": _dollars(value)} for name, value in values.items()]


def _gpu_limits(task: Task) -> dict[str, Any]:
    count = task.processes if task.gpus is None else task.gpus
    return {"resources": {"limits": {"nvidia.com/gpu": count}}} if count else {}


def _indexed_job(task: Task) -> list[dict[str, Any]]:
    """A Job whose pods know their number, and a service that gives the first one a name."""
    volumes, mounts = _volumes(task)
    env = _env(task.env)
    if task.nodes > 1:
        index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        nodes = {"NNODES": str(task.nodes), "MASTER_ADDR": f"{NAME}-0.{NAME}", "MASTER_PORT": str(_PORT)}
        env += [*_env(nodes), {"name": "NODE_RANK", "valueFrom": {"fieldRef": index}}]
    container = {
        "name": NAME,
        "image": task.image,
        "command": ["bash", task.start],
        "env": env,
        **_gpu_limits(task),
        "volumeMounts": mounts,
    }
    refused = {"operator": "In", "values": _FINAL_CODES}
    pod = {
        "subdomain": NAME,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": task.grace,
        "containers": [container],
        "volumes": volumes,
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": NAME},
        "spec": {
            "completionMode": "Indexed",
            "completions": task.nodes,
            "parallelism": task.nodes,
            "backoffLimit": 3,
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": refused}]},
            "template": {"spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {"clusterIP": "None", "selector": {"job-name": NAME}, "publishNotReadyAddresses": True},
    }
    return [service, job] if task.nodes > 1 else [job]


def _trainjob(task: Task) -> list[dict[str, Any]]:
    """Kubeflow Trainer, from 2.3 on (`runtimePatches`); its runtime sets the variables of the nodes."""
    volumes, mounts = _volumes(task)
    limits = _gpu_limits(task)
    trainer = {
        "image": task.image,
        "command": ["bash", task.start],
        "numNodes": task.nodes,
        "numProcPerNode": task.processes,
        "env": _env({name: value for name, value in task.env.items() if name != "NPROC_PER_NODE"}),
        **({"resourcesPerNode": limits["resources"]} if limits else {}),
    }
    pod = {
        "terminationGracePeriodSeconds": task.grace,
        "containers": [{"name": "node", "volumeMounts": mounts}],
        "volumes": volumes,
    }
    node = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    patch = {
        "manager": NAME,
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [node]}}},
    }
    spec = {"runtimeRef": {"name": "torch-distributed"}, "trainer": trainer, "runtimePatches": [patch]}
    head = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": {"name": NAME}}
    return [{**head, "spec": spec}]


def _slurm(task: Task) -> str:
    """A batch script for sbatch: one launcher a node, on folders that all nodes share."""
    gpus = task.processes if task.gpus is None else task.gpus
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --job-name={NAME}",
            f"#SBATCH --nodes={task.nodes}",
            "#SBATCH --ntasks-per-node=1",
            *([f"#SBATCH --gpus-per-node={gpus}"] if gpus else []),
            f"#SBATCH --signal=TERM@{task.grace}",
            "#SBATCH --requeue",
            "",
            *(f"export {name}={shlex.quote(value)}" for name, value in task.own_env.items()),
            "",
            shlex.join(["srun", "--kill-on-bad-exit=1", "bash", task.own_start]),
        ]
    )


def _skypilot(task: Task) -> dict[str, Any]:
    count = task.processes if task.gpus is None else task.gpus
    resources: dict[str, Any] = {"image_id": f"docker:{task.image}"}
    if count:
        resources["accelerators"] = f"{task.gpu_name}:{count}"
    return {
        "name": NAME,
        "num_nodes": task.nodes,
        "resources": resources,
        "envs": dict(task.env),
        "file_mounts": {
            # MOUNT alone cannot append to a file; a bucket's name has no capitals: SkyPilot asks for yours
            volume.target: volume.source
            if volume.read_only
            else {"name": "NAME-OF-YOUR-BUCKET", "mode": "MOUNT_CACHED"}
            for volume in task.volumes
        },
        "run": shlex.join(["bash", task.start]),
    }
