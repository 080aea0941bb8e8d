"""The plan of a job: every value with its source, the command, the arithmetic, and everything that is wrong."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sdjob import compat
from sdjob.pipeline import PipelineFolder
from sdjob.problem import Problem, exit_code
from sdjob.spec import RunSpec, settings_of
from sdlaunch import cluster, command, devices, mounts, preflight, settings
from sdlaunch.cluster import Cluster
from sdlaunch.command import Host, LaunchPlan
from sdlaunch.mounts import Contents, Mounts
from sdlaunch.options import LaunchOptions
from sdlaunch.preflight import Job
from sdlaunch.redact import secrets_of
from sdlaunch.settings import Settings


@dataclass(frozen=True)
class Value:
    """A setting's value, where it comes from, and the worker's flag that carries it."""

    value: Any
    source: str
    flag: str | None = None


@dataclass(frozen=True)
class JobPlan:
    """Everything that is known of a job before it starts. `launch` is None where a setting was refused."""

    settings: Mapping[str, Value]
    mounts: Mapping[str, Mapping[str, str]]
    arithmetic: tuple[str, ...]
    launch: LaunchPlan | None
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    output: Path
    cluster: Cluster
    stop_grace: float
    secrets: tuple[str, ...] = field(default=(), repr=False)  # never to be shown

    @property
    def code(self) -> int:
        return exit_code(self.problems)

    def to_dict(self) -> dict[str, Any]:
        """The plan as `plan --json` prints it."""
        return {
            "settings": {
                name: {"value": each.value, "source": each.source}
                | ({"flag": each.flag} if each.flag else {})
                for name, each in self.settings.items()
            },
            "mounts": {name: dict(about) for name, about in self.mounts.items()},
            "arithmetic": list(self.arithmetic),
            "argv": list(self.launch.argv) if self.launch else [],
            "env": dict(self.launch.env) if self.launch else {},
            "unset": list(self.launch.unset) if self.launch else [],
            "problems": [problem.to_dict() for problem in self.problems],
            "warnings": list(self.warnings),
        }


def prepare(
    flags: Sequence[tuple[str, str]],
    environ: Mapping[str, str],
    home: Path,
    misunderstood: Sequence[Problem] = (),
    worker: str = command.WORKER,
) -> JobPlan:
    """Reads the settings, looks at the machine and the mounts, checks everything, builds the command."""
    read = settings.read(flags, environ)
    place = mounts.resolve(read.options, home)
    found = devices.find(read.spec.device, environ)
    where = cluster.resolve(read.options, _sources(read, LaunchOptions), environ, found)
    contents = mounts.look(place, read.options, read.spec)
    spec, computed = _completed(read, place, contents, where.cluster, found)
    job = Job(spec, where.cluster, found, place, contents)
    problems = {*misunderstood, *read.problems, *where.problems, *contents.problems, *preflight.run(job)}
    host = Host(home, sys.executable, found.cores, environ)
    clear = not (misunderstood or read.problems or where.problems)
    return JobPlan(
        settings=_table(read, spec, place, where, computed),
        mounts=_mount_table(place, contents),
        arithmetic=_arithmetic(job),
        launch=command.build(spec, where.cluster, host, read.passed_on, worker, read.options.max_restarts)
        if clear
        else None,
        problems=tuple(sorted(problems)),
        warnings=read.warnings,
        output=place.output,
        cluster=where.cluster,
        stop_grace=read.options.stop_grace,
        secrets=secrets_of({**environ, **read.passed_on}),
    )


def _sources(read: Settings, model: type[BaseModel]) -> dict[str, str]:
    """The names that users set, and where."""
    names = settings.shown_names(model).values()
    return {name: read.source(name) for name in names if name in read.given}


def _completed(
    read: Settings, place: Mounts, contents: Contents, where: Cluster, found: devices.Devices
) -> tuple[RunSpec, dict[str, str]]:
    """The spec with everything that the launcher knows better, and the sources of those values."""
    spec = read.spec
    data = "instance_data_dir" if spec.recipe == "dreambooth" else "train_data_dir"
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": str(contents.model_path),
        "output_dir": str(place.output),
        data: str(contents.dataset_path),
    }
    sources = {"pretrained_model_name_or_path": "MODEL_DIR", "output_dir": "OUTPUT_DIR", data: "DATASET_DIR"}
    if spec.device == "auto":
        values["device"], sources["device"] = found.kind, found.why
    precision = compat.resolve_precision(spec, compat.Topology(found.kind, where.world_size, found.bf16))
    if precision != spec.mixed_precision:
        values["mixed_precision"] = precision
        sources["mixed_precision"] = f"auto: {found.kind} with plugin={spec.plugin}"
    epochs = spec.num_train_epochs
    if epochs and contents.dataset and "num_train_step" not in read.given:
        examples = contents.dataset.num_examples
        values["max_train_steps"] = math.ceil(epochs * examples / _global_batch(spec, where))
        sources["num_train_step"] = f"computed: epoch={epochs} over {examples} pictures"
    return spec.model_copy(update=values), sources


def _global_batch(spec: RunSpec, where: Cluster) -> int:
    return spec.train_batch_size * spec.gradient_accumulation_steps * where.world_size


def _table(
    read: Settings, spec: RunSpec, place: Mounts, where: cluster.Resolved, computed: Mapping[str, str]
) -> dict[str, Value]:
    """Every setting by the name that users type. A refused value is shown as it was written."""
    refused = {problem.subject for problem in read.problems}
    known = {
        "MODEL_DIR": str(place.model),
        "DATASET_DIR": str(place.dataset),
        "PROJECT_DIR": str(place.project),
        "OUTPUT_DIR": str(place.output),
        "NPROC_PER_NODE": where.cluster.nproc_per_node,
        "NNODES": where.cluster.nodes,
        "NODE_RANK": where.cluster.node_rank,
    }
    table: dict[str, Value] = {}
    models: tuple[BaseModel, ...] = (spec, read.options)
    for model in models:
        for name, about in settings_of(type(model)).items():
            shown = about.name or name
            value, source = known.get(shown, getattr(model, name)), read.source(shown)
            if shown in refused and shown in read.given:
                value = read.given[shown].text
            elif shown in where.sources:
                source = where.sources[shown]
            source = computed.get(shown, source)
            flag = f"--{name}" if model is spec else None
            table[shown] = Value(list(value) if isinstance(value, tuple) else value, source, flag)
    return table


def _mount_table(place: Mounts, contents: Contents) -> dict[str, dict[str, str]]:
    model, data = contents.model, contents.dataset
    return {
        "MODEL_DIR": {
            "path": str(place.model),
            "uses": str(contents.model_path),
            "found": f"{model.class_name}, {model.prediction_type}, {_bytes_of(model)}"
            if model
            else "nothing usable",
        },
        "DATASET_DIR": {
            "path": str(place.dataset),
            "uses": str(contents.dataset_path),
            "found": f"{data.num_examples} pictures, {data.format}" if data else "nothing usable",
        },
        "PROJECT_DIR": {"path": str(place.project), "uses": str(place.project), "found": "read only"},
        "OUTPUT_DIR": {"path": str(place.output), "uses": str(place.output), "found": "written to"},
    }


def _bytes_of(model: PipelineFolder) -> str:
    return preflight.in_units(sum(part.num_bytes for part in model.parts.values()))


def _arithmetic(job: Job) -> tuple[str, ...]:
    """The batch, the epochs, the checkpoints: as sums that a person can check."""
    spec, total = job.spec, _global_batch(job.spec, job.cluster)
    lines = [
        f"batch: {spec.train_batch_size} per device × {spec.gradient_accumulation_steps} accumulated × "
        f"{job.cluster.world_size} processes = {total} pictures a step"
    ]
    if job.contents.dataset:
        examples = job.contents.dataset.num_examples
        lines.append(
            f"length: {examples} pictures / {total} = {examples / total:.4g} steps an epoch; "
            f"{spec.max_train_steps} steps = {spec.max_train_steps * total / examples:.4g} epochs"
        )
    if (size := preflight.checkpoint_bytes(job)) is not None:
        kept = preflight.kept_checkpoints(spec)
        lines.append(
            f"checkpoints: {kept} kept × {preflight.in_units(size)} = {preflight.in_units(kept * size)}"
        )
    return tuple(lines)
