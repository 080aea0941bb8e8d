"""`emit skypilot`, read as YAML."""

import yaml

from tests.sdlaunch.emit.emitted import ENV, NUMBERED, SETTINGS, emit
from tests.sdlaunch.workspace import HOME


def test_skypilot():
    assert yaml.safe_load(emit("skypilot", **SETTINGS, **NUMBERED)) == {
        "name": "sdjob",
        "num_nodes": 2,
        "resources": {"image_id": "docker:sd-finetune:cuda", "accelerators": "A100:2"},
        "envs": ENV,
        "file_mounts": {
            "/mnt/model": "/a b/model",
            "/mnt/dataset": "/data,set",
            "/mnt/project": str(HOME),
            "/output": {"name": "NAME-OF-YOUR-BUCKET", "mode": "MOUNT_CACHED"},
        },
        "run": "bash /mnt/project/train.sh",
    }
