"""The task that every target starts from, made from a plan, and what several targets write alike."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjob.formatting import visible
from sdlaunch.plan import JobPlan

NAME = "sdjob"
_MOUNTS = {
    "MODEL_DIR": "/mnt/model",
    "DATASET_DIR": "/mnt/dataset",
    "PROJECT_DIR": "/mnt/project",
    "OUTPUT_DIR": "/output",
}
_LAUNCHER = "/opt/sdjob"  # the folder of train.sh, if the project is another folder
_CLUSTER = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_PLAIN = re.compile(r"[A-Za-z/][\w./:-]*", re.ASCII)  # needs no quotes, unless it is a word such as null
_NOT_PASSED_ON = (*_MOUNTS, *_CLUSTER, "ENV_FILE", "CONFIG_FILE", "image", "shm_size", "gpu_name")


@dataclass(frozen=True)
class Volume:
    """A folder of the host, and its path in the container."""

    name: str
    source: str
    target: str
    read_only: bool


@dataclass(frozen=True)
class Task:
    """A job, with everything that a target needs."""

    image: str
    gpu_name: str
    shm_size: str
    env: Mapping[str, str]  # settings that differ from their defaults, with the paths of the container
    host_env: Mapping[str, str]  # the same settings with the paths of the host
    cluster_env: Mapping[str, str]  # nodes, rank and address, where the user set them
    volumes: tuple[Volume, ...]
    start: str  # train.sh in the container
    host_start: str  # train.sh on the host
    nodes: int
    processes: int  # per node
    cores: int  # per node, one for each process and loader process
    gpus: int | None  # per node; None: as many as there are; 0: none
    grace: int  # seconds from a stop to the end

    @property
    def gpu_count(self) -> int:
        """Devices per node, for a platform that needs a number."""
        return self.processes if self.gpus is None else self.gpus


def task_of(job: JobPlan, home: Path) -> Task:
    """The task of a planned job; `home` is the folder of train.sh."""

    def value(name: str) -> Any:
        return job.settings[name].value

    volumes = [
        Volume(name.removesuffix("_DIR").lower(), str(value(name)), path, name != "OUTPUT_DIR")
        for name, path in _MOUNTS.items()
    ]
    changed = {
        name: text
        for name, text in job.given.items()
        if name not in _NOT_PASSED_ON and job.settings[name].default not in (value(name), text)
    }
    env = {name: _in_container(text, volumes) for name, text in changed.items()}
    start = _MOUNTS["PROJECT_DIR"]
    if Path(value("PROJECT_DIR")) != home:
        start = _LAUNCHER
        volumes.append(Volume("launcher", str(home), _LAUNCHER, read_only=True))
        env["PROJECT_DIR"] = _MOUNTS["PROJECT_DIR"]
    processes = job.cluster.nproc_per_node
    on_cpu = "device" in job.given and value("device") == "cpu"
    counted = job.given.get("NPROC_PER_NODE", "auto").isdecimal()
    return Task(
        image=value("image"),
        gpu_name=value("gpu_name"),
        shm_size=value("shm_size"),
        env=env,
        host_env=changed | {name: str(value(name)) for name in _MOUNTS},
        cluster_env={name: job.given[name] for name in _CLUSTER if name in job.given},
        volumes=tuple(volumes),
        start=f"{start}/train.sh",
        host_start=str(home / "train.sh"),
        nodes=job.cluster.nodes,
        processes=processes,
        cores=processes * (1 + value("dataloader_num_workers")),
        gpus=0 if on_cpu else processes if counted else None,
        grace=math.ceil(job.stop_grace) + 10,
    )


def _in_container(text: str, volumes: list[Volume]) -> str:
    """A path below a folder of the host as the container sees it; any other text unchanged."""
    for volume in volumes:
        if text == volume.source or text.startswith(volume.source.rstrip("/") + "/"):
            return volume.target + text.removeprefix(volume.source.rstrip("/"))
    return text


def to_yaml(*documents: Mapping[str, Any]) -> str:
    """YAML that every version of the language reads alike: 1e-5 is a text to PyYAML, and a number to kubectl."""
    import yaml

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        plain = _PLAIN.fullmatch(value) and value.lower() not in ("y", "n")
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')

    dumper: Any = type("Dumper", (yaml.SafeDumper,), {})
    dumper.add_representer(str, text)
    lines = yaml.dump_all(documents, Dumper=dumper, sort_keys=False, allow_unicode=True, width=10**6)
    return visible(str(lines).rstrip("\n"))  # in double quotes, where YAML reads the same escapes


def escape_dollars(text: str) -> str:
    """Compose and Kubernetes replace $NAME or $(NAME) in values; $$ stands for the character."""
    return text.replace("$", "$$")


def shell_words(words: Sequence[str]) -> str:
    """The words as bash reads them back; what a terminal would obey, or not show, is escaped."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if visible(word) == word:
        return shlex.quote(word)
    escaped = (
        "".join(f"\\x{byte:02x}" for byte in each.encode(errors="surrogateescape"))
        if visible(each) != each or each in "'\\"
        else each
        for each in word
    )
    return f"$'{''.join(escaped)}'"
