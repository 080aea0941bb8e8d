"""`emit kubernetes`: a TrainJob of Kubeflow Trainer, or with --kind=job an indexed Job that needs no operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdjob.exit_codes import REFUSED
from sdlaunch.emit.task import NAME, Task, escape_dollars, to_yaml

_PORT = 29400
_CLAIM = f"""\
# All nodes write into one folder: first create a PersistentVolumeClaim {NAME}-output with access mode
# ReadWriteMany, or name one that exists."""


def train_job(task: Task) -> str:
    """A TrainJob of Kubeflow Trainer 2.3 or higher (`runtimePatches`); its runtime sets the variables of the nodes."""
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
    job = {**_head("trainer.kubeflow.org/v1alpha1", "TrainJob"), "spec": spec}
    return _manifest(task, _network_policy(task, "jobset.sigs.k8s.io/jobset-name"), job)


def indexed_job(task: Task) -> str:
    """A Job whose pods know their index, and a service that gives the first one a name."""
    refused = {"operator": "In", "values": [int(code) for code in REFUSED]}
    job = {
        **_head("batch/v1", "Job"),
        "spec": {
            "completionMode": "Indexed",
            "completions": task.nodes,
            "parallelism": task.nodes,
            "backoffLimit": 3,
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": refused}]},
            "template": {"spec": _pod(task)},
        },
    }
    service = {
        **_head("v1", "Service"),
        "spec": {"clusterIP": "None", "selector": {"job-name": NAME}, "publishNotReadyAddresses": True},
    }
    policy = _network_policy(task, "batch.kubernetes.io/job-name")
    return _manifest(task, *([policy, service, job] if task.nodes > 1 else [policy, job]))


def _network_policy(task: Task, label: str) -> dict[str, Any]:
    """Only the pods of the job, which have its name in this label, reach its pods: PyTorch trusts all that do."""
    pods = {"podSelector": {"matchLabels": {label: NAME}}}
    ingress = [{"from": [pods]}] if task.nodes > 1 else []
    return {
        **_head("networking.k8s.io/v1", "NetworkPolicy"),
        "spec": {**pods, "policyTypes": ["Ingress"], "ingress": ingress},
    }


def _manifest(task: Task, *documents: Mapping[str, Any]) -> str:
    text = to_yaml(*documents)
    return f"{_CLAIM}\n{text}" if task.nodes > 1 else text


def _pod(task: Task) -> dict[str, Any]:
    volumes, mounts = _volumes(task)
    env = _env(task.env)
    if task.nodes > 1:
        index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        job = {"fieldPath": "metadata.labels['batch.kubernetes.io/controller-uid']"}
        nodes = {"NNODES": str(task.nodes), "MASTER_ADDR": f"{NAME}-0.{NAME}", "MASTER_PORT": str(_PORT)}
        named = ({} if "rendezvous_id" in task.env else {"rendezvous_id": job}) | {"NODE_RANK": index}
        env += _env(nodes)
        env += [{"name": name, "valueFrom": {"fieldRef": field}} for name, field in named.items()]
    container = {
        "name": NAME,
        "image": task.image,
        "command": ["bash", task.start],
        "env": env,
        **_gpu_limits(task),
        "volumeMounts": mounts,
    }
    return {
        "subdomain": NAME,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": task.grace,
        "containers": [container],
        "volumes": volumes,
    }


def _head(version: str, kind: str) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": NAME}}


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
    return [{"name": name, "value": escape_dollars(value)} for name, value in values.items()]


def _gpu_limits(task: Task) -> dict[str, Any]:
    return {"resources": {"limits": {"nvidia.com/gpu": task.gpu_count}}} if task.gpu_count else {}
