"""LaunchOptions: the launcher's own settings, once, with the same metadata as the worker's in RunSpec."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sdjob.settings.fields import Count, DataPath, Positive, Text, setting

_mounts = partial(setting, "mounts")
_script = partial(setting, "script")
_cluster = partial(setting, "cluster")
_launcher = partial(setting, "launcher")
_emit = partial(setting, "emit")


class LaunchOptions(BaseModel):
    """Where things are, how many processes there are, and how the launcher behaves.

    Upper-case names (mount roots, cluster, files) are read from an environment in upper case only,
    because their lower-case names mean other things there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_dir: Text = _mounts("/mnt/model", "folder of the model, at its root or below", name="MODEL_DIR")
    dataset_dir: DataPath = _mounts(
        "/mnt/dataset", "folder of the dataset, at its root or below", name="DATASET_DIR"
    )
    project_dir: Text | None = _mounts(
        None, "folder of the project; empty: the folder of train.sh", name="PROJECT_DIR"
    )
    output_dir: Text = _mounts(
        "/output", "folder that receives everything that the job writes", name="OUTPUT_DIR"
    )
    model_name: Text | None = _mounts(
        None,
        "model to use: a folder below MODEL_DIR, a path, or a hub id; empty: the only one there",
        aliases=("pretrained_model_name_or_path",),
    )
    dataset_name: DataPath | None = _mounts(
        None, "dataset to use: a folder below DATASET_DIR, a path, or a hub id; empty: the only one there"
    )
    offline: bool = _mounts(
        True, "never use the network; 0: names that match nothing local are downloaded from the hub"
    )

    script: Text | None = _script(
        None, "Python script that every process runs instead of the worker: absolute, or below PROJECT_DIR"
    )
    script_args: Text | None = _script(
        None,
        "its arguments, split as in a shell; {model}, {dataset}, {output}, {nproc} and the names of settings "
        "in braces are filled in",
    )

    nproc_per_node: Annotated[str, Field(pattern=r"^(auto|gpu|cpu|[1-9][0-9]{0,3})$")] = _cluster(
        "auto",
        "processes per node: a number; gpu: one per accelerator; cpu: one per core; "
        "auto: one per accelerator, else one",
        name="NPROC_PER_NODE",
    )
    nnodes: Positive | None = _cluster(None, "nodes; empty: one", name="NNODES")
    node_rank: Count | None = _cluster(None, "number of this node, from 0", name="NODE_RANK")
    master_addr: Text | None = _cluster(None, "name or address of node 0", name="MASTER_ADDR")
    master_port: Annotated[int, Field(ge=1, le=65535)] | None = _cluster(
        None, "free port on node 0; empty: 29400", name="MASTER_PORT"
    )

    launcher: Literal["torchrun", "accelerate"] = _launcher("torchrun", "program that starts the processes")
    accelerate_config: Text | None = _launcher(
        None, "file made by `accelerate config`, for launcher=accelerate"
    )
    env_file: Text | None = _launcher(None, "file with one NAME=value per line", name="ENV_FILE")
    config_file: Text | None = _launcher(None, "YAML file with settings", name="CONFIG_FILE")
    strict_env: bool = _launcher(True, "a near miss of a name stops the job; 0: it is only a warning")
    install_requirements: bool = _launcher(
        False,
        "install missing Python packages when the job starts, under the user's cache folder (not PyTorch)",
    )
    stop_grace: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = _launcher(
        25.0, "time to save and exit when the job is stopped by an external signal", unit="seconds"
    )
    publish: Text | None = _launcher(
        None,
        "where the result is uploaded when the run has finished: hub:USER/NAME, or an address of fsspec such as "
        "s3://BUCKET/FOLDER; empty: nowhere",
    )
    max_restarts: Annotated[int, Field(ge=0, le=100)] = _launcher(
        0, "how often crashed workers are restarted, from the newest checkpoint"
    )
    rendezvous_timeout: Annotated[int, Field(ge=10, le=604800)] = _launcher(
        600, "time that a node waits for the other nodes", unit="seconds"
    )
    rendezvous_id: Annotated[str, Field(pattern=r"^[\w.:-]{1,200}$")] | None = _launcher(
        None,
        "name of the meeting of several nodes, the same on all; empty: the platform's job id, if it has one",
    )
    hang_timeout: Annotated[float, Field(ge=0, le=604800, allow_inf_nan=False)] = _launcher(
        600.0,
        "time without progress on any rank, or of a download, after which the job ends, with the stacks of all "
        "ranks; 0: never",
        unit="seconds",
    )
    check_timeout: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] = _launcher(
        60.0, "time after which a check is reported as a problem instead of waited for", unit="seconds"
    )

    image: Text = _emit("sd-finetune:cuda", "container image that the emitted job uses")
    shm_size: Annotated[str, Field(pattern=r"^[1-9][0-9]*[mg]$")] = _emit(
        "8g", "shared memory of the emitted job, such as 8g"
    )
    gpu_name: Text = _emit("A100", "device model that an emitted SkyPilot task requests")
