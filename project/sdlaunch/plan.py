"""The plan of a job: every value with its source, the command, the arithmetic, and everything that is wrong."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sdjob.dataset import validation_split
from sdjob.formatting import in_units
from sdjob.model.pipeline import PipelineFolder
from sdjob.problems import JobError, Problem, bad_setting, exit_code
from sdjob.settings import advice, compatibility, steps
from sdjob.settings.fields import settings_of
from sdjob.settings.run_spec import RunSpec
from sdlaunch import command, user_script
from sdlaunch.cluster import accelerate, devices
from sdlaunch.cluster import resolve as cluster
from sdlaunch.cluster.resolve import Cluster
from sdlaunch.command import Host, LaunchPlan, Program
from sdlaunch.display.redact import secrets_of
from sdlaunch.inputs import fetch as fetching
from sdlaunch.inputs import mounts
from sdlaunch.inputs.mounts import Contents, Mounts
from sdlaunch.preflight import arithmetic, checks, device_memory
from sdlaunch.preflight.job import Job
from sdlaunch.settings import names
from sdlaunch.settings import resolve as settings
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.settings.resolve import Settings
from sdlaunch.user_script import Script


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
    given: Mapping[str, str] = field(default_factory=dict)  # the settings that somebody made, as typed
    defaults: Mapping[str, Any] = field(default_factory=dict)
    secrets: tuple[str, ...] = field(default=(), repr=False)  # never to be shown
    lighter: Callable[[], list[str]] = field(default=list, repr=False)  # settings that need less memory
    awaited: tuple[str, ...] = ()  # what still has to come from outside

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
    *,
    fetch: bool = False,
    assigns_ranks: bool = False,
) -> JobPlan:
    """Reads the settings, looks at the machine and the mounts, checks everything, builds the command.

    `assigns_ranks`: the job is for a platform that numbers its nodes.
    `fetch`: what has to come from outside comes now, if nothing else is wrong; otherwise it is only named.
    """
    read = settings.read(flags, environ)
    plan = _prepared(read, environ, home, misunderstood, worker, fetch=False, assigns_ranks=assigns_ranks)
    if not fetch or plan.problems or not plan.awaited:
        return plan
    return _prepared(read, environ, home, misunderstood, worker, fetch=True)


def _prepared(
    read: Settings,
    environ: Mapping[str, str],
    home: Path,
    misunderstood: Sequence[Problem],
    worker: str,
    *,
    fetch: bool,
    assigns_ranks: bool = False,
) -> JobPlan:
    place = mounts.resolve(read.options, home)
    supplies = fetching.gather(read, place, home, environ, fetch=fetch)
    found = devices.find(read.spec.device, environ)
    config = accelerate.read(read.options)
    options, sources = accelerate.completed(read.options, _sources(read, LaunchOptions), config)
    where = cluster.resolve(options, sources, environ, found, assigns_ranks=assigns_ranks)
    contents = mounts.look(place, supplies.options, read.spec, supplies.awaited)
    spec, computed = _completed(read, place, contents, where.cluster, found)
    job = Job(
        spec,
        where.cluster,
        found,
        place,
        contents,
        time.monotonic() + read.options.check_timeout,
        read.options.check_timeout,
        has_script=read.options.script is not None,
        packages_come=fetching.PACKAGES in supplies.awaited,
    )
    table = _table(read, spec, place, where, computed)
    own, own_problems = _script(read.options, place, contents, table)
    input_problems, left_to_script = _judged(contents, has_script=read.options.script is not None)
    problems = {*misunderstood, *read.problems, *where.problems, *input_problems, *own_problems}
    problems |= {*config.problems, *accelerate.contradictions(config, spec, where.cluster)}
    checked = checks.run(job)
    problems |= {*checked.problems, *supplies.problems}
    host = Host(home, sys.executable, found.cores, _with_path(environ, supplies.path))
    clear = not (misunderstood or read.problems or where.problems or own_problems)
    online = {} if read.options.offline or "HF_HUB_OFFLINE" in environ else {"HF_HUB_OFFLINE": "0"}
    passed_on = {**online, **read.passed_on}
    program = Program(
        worker,
        own,
        options.max_restarts,
        options.launcher,
        options.accelerate_config,
        options.stop_grace,
    )
    idle = () if own else (*advice.without_effect(read.spec), *advice.high_rates(read.spec))
    return JobPlan(
        settings=table,
        mounts=_mount_table(spec, place, contents, own, problems),
        arithmetic=(*arithmetic.lines(job), *checked.notes),
        launch=command.build(_of_open_length(spec, read), where.cluster, host, passed_on, program)
        if clear
        else None,
        problems=tuple(sorted(problems)),
        warnings=(*read.warnings, *supplies.warnings, *left_to_script, *checked.warnings, *idle),
        output=place.output,
        cluster=where.cluster,
        stop_grace=read.options.stop_grace,
        given={
            shown: text if isinstance(text := each.text, str) else json.dumps(text, ensure_ascii=False)
            for shown, each in read.given.items()
        },
        defaults={
            shown: model.model_fields[name].default
            for model in (RunSpec, LaunchOptions)
            for name, shown in settings.shown_names(model).items()
        },
        secrets=secrets_of({**environ, **read.passed_on}),
        lighter=functools.partial(device_memory.would_fit, job),
        awaited=supplies.awaited,
    )


def _with_path(environ: Mapping[str, str], path: Sequence[str]) -> Mapping[str, str]:
    """The environment with more folders to import from, after those that it has."""
    inherited = environ.get("PYTHONPATH")
    return (
        {**environ, "PYTHONPATH": os.pathsep.join([*([inherited] if inherited else []), *path])}
        if path
        else environ
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
    data = spec.recipe_facts.data_setting
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": str(contents.model_path),
        "output_dir": str(place.output),
        data: str(contents.dataset_path),
    }
    sources = {"pretrained_model_name_or_path": "MODEL_DIR", "output_dir": "OUTPUT_DIR", data: "DATASET_DIR"}
    if spec.device == "auto":
        values["device"], sources["device"] = found.type, found.why
    precision = compatibility.resolve_precision(
        spec, compatibility.Topology(found.type, where.world_size, found.bf16)
    )
    if precision != spec.mixed_precision:
        values["mixed_precision"] = precision
        sources["mixed_precision"] = f"auto: {found.type} with plugin={spec.plugin}"
    epochs = spec.num_train_epochs
    if epochs and contents.data and steps.by_epochs(spec):
        examples = sum(validation_split.trained_on(spec, each.num_examples) for each in contents.data)
        values["max_train_steps"] = steps.steps_of(epochs, spec, examples, where.world_size)
        sources["num_train_step"] = f"computed: epoch={epochs} over {examples} images"
    return spec.model_copy(update=values), sources


def _of_open_length(spec: RunSpec, read: Settings) -> RunSpec:
    """Where epochs decide, the spec without the steps: those of a run that goes on with another batch are others."""
    if not steps.by_epochs(read.spec):
        return spec
    return RunSpec.model_validate(
        {name: getattr(spec, name) for name in spec.model_fields_set - {"max_train_steps"}}
    )


def _script(
    options: LaunchOptions, place: Mounts, contents: Contents, table: Mapping[str, Value]
) -> tuple[Script | None, list[Problem]]:
    """The user's script with its arguments filled in, and what is wrong with either."""
    if options.script is None:
        remedy = "Set script too, or unset script_args."
        return None, [bad_setting("script_args", "set, and no script", remedy)] if options.script_args else []
    path = user_script.path_of(options.script, place.project)
    closed = any(problem.subject == "PROJECT_DIR" for problem in contents.problems)
    problems = [] if closed and path.is_relative_to(place.project) else user_script.problems_of(path)
    try:
        arguments = user_script.arguments_of(options.script_args or "", _placeholders(place, contents, table))
    except JobError as error:
        return None, [*problems, *error.problems]
    return Script(path, arguments), problems


def _placeholders(place: Mounts, contents: Contents, table: Mapping[str, Value]) -> dict[str, Any]:
    """What may stand in braces in script_args: four short names, and every name of every setting."""
    known = {name: table[target.shown].value for name, target in names.catalogue().items()}
    return known | {
        "model": str(contents.model_path),
        "dataset": str(contents.dataset_path),
        "output": str(place.output),
        "nproc": table["NPROC_PER_NODE"].value,
    }


def _judged(contents: Contents, *, has_script: bool) -> tuple[list[Problem], list[str]]:
    """Problems of the mounts; a script may read what the worker cannot, so to it some are only warnings."""
    usable = {
        path
        for path in (contents.model_path, contents.dataset_path)
        if has_script and os.access(path, os.R_OK | os.X_OK)
    }
    mine = ("MODEL_DIR", "DATASET_DIR", "PROJECT_DIR")
    doubted = [
        problem
        for problem in contents.problems
        if problem.subject not in mine and any(Path(problem.subject).is_relative_to(path) for path in usable)
    ]
    return (
        [problem for problem in contents.problems if problem not in doubted],
        [f"{problem.subject}: {problem.found}; left to the script" for problem in doubted],
    )


def _table(
    read: Settings, spec: RunSpec, place: Mounts, where: cluster.Resolved, computed: Mapping[str, str]
) -> dict[str, Value]:
    """Every setting by the name that users type. A refused value is shown as it was written."""
    refused = {problem.subject for problem in read.problems}
    known: dict[str, Any] = {
        "MODEL_DIR": str(place.model),
        "DATASET_DIR": str(place.dataset),
        "PROJECT_DIR": str(place.project),
        "OUTPUT_DIR": str(place.output),
        "NPROC_PER_NODE": where.cluster.nproc_per_node,
        "NNODES": where.cluster.nodes,
        "NODE_RANK": where.cluster.node_rank,
    }
    if read.options.script and "hang_timeout" not in read.given:
        known["hang_timeout"] = 0.0  # only the worker shows on its own that it goes forward
        computed = {**computed, "hang_timeout": "script"}
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


def _mount_table(
    spec: RunSpec, place: Mounts, contents: Contents, own: Script | None, problems: Collection[Problem]
) -> dict[str, dict[str, str]]:
    wrong = {problem.subject for problem in problems}
    model, data = contents.model, contents.dataset
    return {
        "MODEL_DIR": {
            "path": str(place.model),
            "uses": str(contents.model_path),
            "found": _about(model) if model else "nothing usable",
        },
        "DATASET_DIR": {
            "path": str(place.dataset),
            "uses": str(contents.dataset_path),
            "found": f"{data.num_examples} images, {data.format.name}"
            if data
            else f"not looked for: {spec.concepts_list} names folders"
            if spec.concepts_list
            else "nothing usable",
        },
        "PROJECT_DIR": {
            "path": str(place.project),
            "uses": str(own.path if own else place.project),
            "found": "not usable" if "PROJECT_DIR" in wrong else _access(place.project),
        },
        "OUTPUT_DIR": {
            "path": str(place.output),
            "uses": str(place.output),
            "found": "not usable" if "OUTPUT_DIR" in wrong else "can be written",
        },
    }


def _access(path: Path) -> str:
    return "can be written, never is" if os.access(path, os.W_OK) else "read only"


def _about(model: PipelineFolder) -> str:
    what = f"{model.single.blueprint.kind} in one file" if model.single else model.class_name
    size = in_units(sum(part.num_bytes for part in model.parts.values()))
    return f"{what}, {model.prediction_type}, {size}"
