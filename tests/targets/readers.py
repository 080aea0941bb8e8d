"""What the programs of .venv-emit make of an emitted file: `python readers.py READER FILE…` prints JSON."""

import contextlib
import json
import sys
from pathlib import Path


def skypilot(path: str) -> object:
    """SkyPilot's own schema and its checks of the mounts; then the values as it passes them on."""
    import sky

    task = sky.Task.from_yaml(path)
    with contextlib.redirect_stdout(sys.stderr):
        task.expand_and_validate_file_mounts()
    (resources,) = task.resources
    return {
        "envs": task.envs,
        "nodes": task.num_nodes,
        "run": task.run,
        "files": task.file_mounts,
        "buckets": {target: storage.name for target, storage in task.storage_mounts.items()},
        "accelerators": resources.accelerators,
        "image": resources.image_id,
    }


def kubeflow(path: str) -> object:
    """The TrainJob as Kubeflow's model writes it: without what the model does not know."""
    import yaml
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    job = TrainerV1alpha1TrainJob.from_dict(yaml.safe_load(Path(path).read_text()))
    assert job is not None
    return job.to_dict()


if __name__ == "__main__":
    reader = {"skypilot": skypilot, "kubeflow": kubeflow}[sys.argv[1]]
    json.dump([reader(path) for path in sys.argv[2:]], sys.stdout)
