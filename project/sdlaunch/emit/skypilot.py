"""`emit skypilot`: a task file for `sky launch`."""

from __future__ import annotations

import shlex
from typing import Any

from sdlaunch.emit.task import NAME, Task, to_yaml

_BUCKET = """\
# /output is a bucket, so that the result outlives the machine: name yours. Files are uploaded in the background.
# Several nodes must see each other's files at once: use a shared volume instead of the bucket."""


def render(task: Task) -> str:
    resources = {"image_id": f"docker:{task.image}"}
    if task.gpu_count:
        resources["accelerators"] = f"{task.gpu_name}:{task.gpu_count}"
    document: dict[str, Any] = {
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
    return f"{_BUCKET}\n{to_yaml(document)}"
