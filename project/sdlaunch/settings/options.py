"""LaunchOptions: the launcher's own settings, once, with the same metadata as the worker's in RunSpec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sdjob.settings.fields import Count, Positive, Setting, Text


class LaunchOptions(BaseModel):
    """Where things are, how many processes there are, and how the launcher behaves.

    Upper-case names (mount roots, cluster, files) are read from an environment in upper case only,
    because their lower-case names mean other things there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    # --- mounts --------------------------------------------------------------------------------------
    model_dir: Annotated[
        Text, Setting("mounts", "folder of the model, at its root or below", name="MODEL_DIR")
    ] = "/mnt/model"
    dataset_dir: Annotated[
        Text, Setting("mounts", "folder of the dataset, at its root or below", name="DATASET_DIR")
    ] = "/mnt/dataset"
    project_dir: Annotated[
        Text | None,
        Setting("mounts", "folder of the project; empty: the folder of train.sh", name="PROJECT_DIR"),
    ] = None
    output_dir: Annotated[
        Text, Setting("mounts", "folder that receives everything that the job writes", name="OUTPUT_DIR")
    ] = "/output"
    model_name: Annotated[
        Text | None,
        Setting(
            "mounts",
            "model to use: a folder below MODEL_DIR, a path, or a hub id; empty: the only one there",
            aliases=("pretrained_model_name_or_path",),
        ),
    ] = None
    dataset_name: Annotated[
        Text | None,
        Setting(
            "mounts",
            "dataset to use: a folder below DATASET_DIR, a path, or a hub id; empty: the only one there",
        ),
    ] = None

    offline: Annotated[
        bool,
        Setting(
            "mounts", "never use the network; 0: names that match nothing local are downloaded from the hub"
        ),
    ] = True

    # --- script --------------------------------------------------------------------------------------
    script: Annotated[
        Text | None,
        Setting(
            "script",
            "Python script that every process runs instead of the worker: absolute, or below PROJECT_DIR",
        ),
    ] = None
    script_args: Annotated[
        Text | None,
        Setting(
            "script",
            "its arguments, split as in a shell; {model}, {dataset}, {output}, {nproc} and the names of settings "
            "in braces are filled in",
        ),
    ] = None

    # --- cluster -------------------------------------------------------------------------------------
    nproc_per_node: Annotated[
        Annotated[str, Field(pattern=r"^(auto|gpu|cpu|[1-9][0-9]{0,3})$")],
        Setting(
            "cluster",
            "processes per node: a number; gpu: one per accelerator; cpu: one per core; "
            "auto: one per accelerator, else one",
            name="NPROC_PER_NODE",
        ),
    ] = "auto"
    nnodes: Annotated[Positive | None, Setting("cluster", "nodes; empty: one", name="NNODES")] = None
    node_rank: Annotated[
        Count | None, Setting("cluster", "number of this node, from 0", name="NODE_RANK")
    ] = None
    master_addr: Annotated[
        Text | None, Setting("cluster", "name or address of node 0", name="MASTER_ADDR")
    ] = None
    master_port: Annotated[
        Annotated[int, Field(ge=1, le=65535)] | None,
        Setting("cluster", "free port on node 0; empty: 29400", name="MASTER_PORT"),
    ] = None

    # --- launcher ------------------------------------------------------------------------------------
    launcher: Annotated[
        Literal["torchrun", "accelerate"], Setting("launcher", "program that starts the processes")
    ] = "torchrun"
    accelerate_config: Annotated[
        Text | None,
        Setting("launcher", "file made by `accelerate config`, for launcher=accelerate"),
    ] = None
    env_file: Annotated[
        Text | None, Setting("launcher", "file with one NAME=value a line", name="ENV_FILE")
    ] = None
    config_file: Annotated[
        Text | None, Setting("launcher", "YAML file with settings", name="CONFIG_FILE")
    ] = None
    strict_env: Annotated[
        bool, Setting("launcher", "a near miss of a name stops the job; 0: it is only a warning")
    ] = True
    install_requirements: Annotated[
        bool,
        Setting(
            "launcher",
            "install missing Python packages when the job starts, under the user's cache folder (not PyTorch)",
        ),
    ] = False
    stop_grace: Annotated[
        Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)],
        Setting("launcher", "time to save and exit when the job is stopped from outside", unit="seconds"),
    ] = 25.0
    max_restarts: Annotated[
        Annotated[int, Field(ge=0, le=100)],
        Setting("launcher", "how often crashed workers are restarted, from the newest checkpoint"),
    ] = 0
    hang_timeout: Annotated[
        Annotated[float, Field(ge=0, le=604800, allow_inf_nan=False)],
        Setting(
            "launcher",
            "time without progress on any rank after which the job ends, with the stacks of all ranks; 0: never",
            unit="seconds",
        ),
    ] = 3600.0
    check_timeout: Annotated[
        Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)],
        Setting(
            "launcher",
            "time after which a check is reported as a problem instead of waited for",
            unit="seconds",
        ),
    ] = 60.0

    # --- emit ----------------------------------------------------------------------------------------
    image: Annotated[Text, Setting("emit", "container image that the emitted job uses")] = "sd-finetune:cuda"
    shm_size: Annotated[
        Annotated[str, Field(pattern=r"^[1-9][0-9]*[mg]$")],
        Setting("emit", "shared memory of the emitted job, such as 8g"),
    ] = "8g"
    gpu_name: Annotated[Text, Setting("emit", "device model that an emitted SkyPilot task requests")] = "A100"
