"""The tables of a plan: every setting with its value and source, and every mount with what was found there."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sdjob.files import shown
from sdjob.formatting import counted, in_units
from sdjob.model.pipeline import PipelineFolder
from sdjob.problems import Problem
from sdjob.settings.fields import settings_of
from sdjob.settings.run_spec import RunSpec
from sdlaunch.cluster.cluster import Resolved
from sdlaunch.inputs.contents import Contents
from sdlaunch.inputs.mounts import Mounts
from sdlaunch.settings.settings import Settings


@dataclass(frozen=True)
class Value:
    """A setting's value, its source, the worker's flag that carries it, and its default."""

    value: Any
    source: str
    flag: str | None = None
    default: Any = None


def settings_table(
    read: Settings, spec: RunSpec, mounts: Mounts, cluster: Resolved, computed: Mapping[str, str]
) -> dict[str, Value]:
    """Every setting by the name that users type. A refused value is shown as it was written.

    `computed`: the sources of the values that the launcher filled in.
    """
    refused = {problem.subject for problem in read.problems}
    known: dict[str, Any] = {
        "MODEL_DIR": str(mounts.model),
        "DATASET_DIR": str(mounts.dataset),
        "PROJECT_DIR": str(mounts.project),
        "OUTPUT_DIR": str(mounts.output),
        "NPROC_PER_NODE": cluster.cluster.nproc_per_node,
        "NNODES": cluster.cluster.nodes,
        "NODE_RANK": cluster.cluster.node_rank,
    }
    if read.options.script and "hang_timeout" not in read.given:
        known["hang_timeout"] = 0.0  # a script sends no heartbeats
        computed = {**computed, "hang_timeout": "script"}
    table: dict[str, Value] = {}
    models: tuple[BaseModel, ...] = (spec, read.options)
    for model in models:
        for field, about in settings_of(type(model)).items():
            name = about.name or field
            value, source = known.get(name, getattr(model, field)), read.source(name)
            if name in refused and name in read.given:
                value = read.given[name].text
            else:
                source = cluster.sources.get(name, source)
            flag = f"--{field}" if model is spec else None
            value = list(value) if isinstance(value, tuple) else value
            default = type(model).model_fields[field].default
            table[name] = Value(value, computed.get(name, source), flag, default)
    return table


def mounts_table(
    spec: RunSpec, mounts: Mounts, contents: Contents, script: Path | None, problems: Collection[Problem]
) -> dict[str, dict[str, str]]:
    """The path of each mount, what the job uses of it, and what was found there."""
    refused = {problem.subject for problem in problems}
    rows = {
        "MODEL_DIR": (mounts.model, contents.model_path, _model(contents.model)),
        "DATASET_DIR": (mounts.dataset, contents.dataset_path, _dataset(contents, spec)),
        "PROJECT_DIR": (mounts.project, script or mounts.project, _project(mounts.project)),
        "OUTPUT_DIR": (mounts.output, mounts.output, "can be written"),
    }
    unusable = refused & {"PROJECT_DIR", "OUTPUT_DIR"}
    return {
        name: {"path": shown(path), "uses": shown(used), "found": "not usable" if name in unusable else found}
        for name, (path, used, found) in rows.items()
    }


def _model(model: PipelineFolder | None) -> str:
    if model is None:
        return "nothing usable"
    name = f"{model.single.title} in one file" if model.single else model.class_name
    size = in_units(sum(part.num_bytes for part in model.parts.values()))
    return f"{name}, {model.prediction_type}, {size}"


def _dataset(contents: Contents, spec: RunSpec) -> str:
    if contents.dataset:
        return f"{counted(contents.dataset.num_examples, 'image')}, {contents.dataset.format.name}"
    return f"not looked for: {spec.concepts_list} names folders" if spec.concepts_list else "nothing usable"


def _project(path: Path) -> str:
    return "can be written, never is" if os.access(path, os.W_OK) else "read only"
