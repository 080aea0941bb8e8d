"""`emit compose`: a file for `docker compose up`."""

from __future__ import annotations

from typing import Any

from sdlaunch.emit.task import NAME, Task, escape_dollars, to_yaml

_REMARK = """\
# The output folder belongs to you, so the container runs as you: RUN_AS=$(id -u) docker compose up"""


def render(task: Task) -> str:
    return f"{_REMARK}\n{to_yaml({'services': {NAME: _service(task)}})}"


def _service(task: Task) -> dict[str, Any]:
    env = {**task.env, **task.cluster_env}
    service: dict[str, Any] = {
        "image": task.image,
        "user": "${RUN_AS:-10001}:0",
        "command": ["bash", task.start],
        "environment": {name: escape_dollars(value) for name, value in env.items()},
        "volumes": [
            {
                "type": "bind",
                "source": escape_dollars(volume.source),
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
        device = {"driver": "nvidia", "count": task.gpus or "all", "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service
