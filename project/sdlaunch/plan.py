"""The plan of a job: every value with its source, the command, the arithmetic, and everything that is wrong.

prepare() goes through five stages: read the settings, inspect the machine and the mounts, resolve what follows from
both, check the job, build the plan.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdjob.automatic import caching
from sdjob.exit_codes import ExitCode
from sdjob.formatting import as_typed, counted
from sdjob.problems import Problem, exit_code
from sdjob.redact import redact, secrets_of, without_secrets, without_secrets_in
from sdjob.settings import advice, compatibility, steps
from sdjob.settings.flags import Given
from sdjob.settings.run_spec import RunSpec
from sdlaunch import automatic, command, python_variables, user_script
from sdlaunch.child_process import python_path
from sdlaunch.cluster import accelerate, cluster, devices, route, sharing
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.cluster.devices import Devices
from sdlaunch.command import Host, LaunchPlan
from sdlaunch.display import tables
from sdlaunch.display.tables import Value
from sdlaunch.inputs import contents as inputs
from sdlaunch.inputs import fetch as fetching
from sdlaunch.inputs import mounts as mount_paths
from sdlaunch.inputs import temporary_folder
from sdlaunch.inputs.contents import Contents
from sdlaunch.inputs.fetch import Fetched
from sdlaunch.inputs.mounts import Mounts
from sdlaunch.inputs.temporary_folder import TemporaryFolder
from sdlaunch.preflight import checks, estimates
from sdlaunch.preflight.job import Job
from sdlaunch.settings import settings
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.settings.settings import Settings
from sdlaunch.timeouts import Task, outcome
from sdlaunch.user_script import Script


@dataclass(frozen=True)
class JobPlan:
    """Everything that is known about a job before it starts. `launch` is None where a setting was refused."""

    settings: Mapping[str, Value]
    mounts: Mapping[str, Mapping[str, str]]
    arithmetic: tuple[str, ...]
    launch: LaunchPlan | None
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    output: Path
    cluster: Cluster
    stop_grace: float
    temporary: TemporaryFolder
    given: Mapping[str, str] = field(default_factory=dict)  # the settings that the user made, as typed
    secrets: tuple[str, ...] = field(default=(), repr=False)  # never to be shown
    network: tuple[str, ...] = ()  # lines about the route to node 0
    launch_on: Callable[[Cluster], LaunchPlan | None] = field(default=lambda _: None, repr=False)
    lighter: Callable[[], list[str]] = field(default=list, repr=False)  # settings that need less memory
    passed_on: Mapping[str, str] = field(default_factory=dict, repr=False)  # variables of the env file
    awaited: tuple[str, ...] = ()  # what is still to be downloaded

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
            "arithmetic": [*self.arithmetic, *self.network],
            "argv": list(without_secrets(self.launch.argv)) if self.launch else [],
            "env": dict(self.launch.env) if self.launch else {},
            "unset": list(self.launch.unset) if self.launch else [],
            "problems": [problem.to_dict() for problem in self.problems],
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class _Read:
    """Stage 1: what the user asks for, and from where."""

    settings: Settings
    environ: Mapping[str, str]
    home: Path
    misunderstood: tuple[Problem, ...]
    assigns_ranks: bool

    @property
    def variables(self) -> dict[str, str]:
        """Those of the job: the environment, and what the env file passes on."""
        return {**self.environ, **self.settings.passed_on}


@dataclass(frozen=True)
class _Inspected:
    """Stage 2: what there is."""

    mounts: Mounts
    fetched: Fetched
    devices: Devices
    accelerate: accelerate.Config
    options: LaunchOptions  # with fetched folders, and processes and nodes of an accelerate configuration
    cluster: cluster.Resolved
    unreached: tuple[str, ...]  # warnings about the route to node 0
    contents: Contents
    temporary: TemporaryFolder


@dataclass(frozen=True)
class _Resolved:
    """Stage 3: what follows from both."""

    job: Job  # with the complete settings
    table: Mapping[str, Value]
    script: Script | None
    script_problems: tuple[Problem, ...]


def prepare(
    flags: Sequence[tuple[str, str]],
    environ: Mapping[str, str],
    home: Path,
    misunderstood: Sequence[Problem] = (),
    *,
    fetch: bool = False,
    assigns_ranks: bool = False,
) -> JobPlan:
    """Plan a job; nothing is written unless `fetch`.

    `fetch`: what has to be downloaded is downloaded now, if nothing else is wrong; otherwise it is only named.
    `assigns_ranks`: the job is for a platform that sets the rank of each node and the address of node 0.
    """
    read = _Read(settings.read(flags, environ), environ, home, tuple(misunderstood), assigns_ranks)
    job = _planned(read, fetch=False)
    return _planned(read, fetch=True) if fetch and job.awaited and not job.problems else job


def _planned(read: _Read, *, fetch: bool) -> JobPlan:
    inspected = _inspect(read, fetch=fetch)
    resolved = _resolve(read, inspected)
    job = replace(resolved.job, until=time.monotonic() + resolved.job.patience)
    return _build(read, inspected, resolved, checks.run(job))


def _inspect(read: _Read, *, fetch: bool) -> _Inspected:
    """Stage 2: the machine, the cluster, and what the mounts contain."""
    spec = read.settings.spec
    mounts = mount_paths.resolve(read.settings.options, read.home)
    fetched = fetching.gather(read.settings, mounts, read.environ, fetch=fetch)
    found = devices.find(spec.device, read.environ)
    config = accelerate.read(fetched.options)
    stated = {name: given.where for name, given in read.settings.given.items()}
    options, sources = accelerate.completed(fetched.options, stated, config)
    where = cluster.resolve(options, sources, read.environ, found, assigns_ranks=read.assigns_ranks)
    where, unreached = (where, ()) if read.assigns_ranks else cluster.with_route(where)
    contents = inputs.look(mounts, options, spec, fetched.awaited)
    temporary = _temporary(read)
    return _Inspected(mounts, fetched, found, config, options, where, unreached, contents, temporary)


def _temporary(read: _Read) -> TemporaryFolder:
    """The folder of temporary files, whose file system may not answer."""
    seconds = read.settings.options.check_timeout
    environ = read.variables
    search = Task(lambda: temporary_folder.find(environ))
    named = environ.get("TMPDIR", "/tmp")
    code = ExitCode.NO_HARDWARE
    found, problems = outcome(search, time.monotonic() + seconds, "TMPDIR", named, seconds, code)
    return found or TemporaryFolder(Path(named), problems=problems)


def _resolve(read: _Read, inspected: _Inspected) -> _Resolved:
    """Stage 3: the complete settings, and a user's script with its arguments."""
    given, options = read.settings, read.settings.options
    job = Job(
        given.spec,
        inspected.cluster.cluster,
        inspected.devices,
        inspected.mounts,
        inspected.contents,
        until=0.0,  # the checks have not begun
        patience=options.check_timeout,
        has_script=options.script is not None,
        publish=options.publish,
        environ=read.variables,
        packages_come=fetching.PACKAGES in inspected.fetched.awaited,
    )
    job, sources = _completed(job)
    table = tables.settings_table(given, job.spec, job.mounts, inspected.cluster, sources)
    values = {name: each.value for name, each in table.items()}
    script, problems = user_script.resolve(options, job.mounts, job.contents, values)
    return _Resolved(job, table, script, tuple(problems))


def _completed(job: Job) -> tuple[Job, dict[str, str]]:
    """The job with the settings that the launcher knows better, and the sources of those values."""
    spec, contents, examples = job.spec, job.contents, job.examples
    data = spec.recipe_facts.data_setting
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": str(contents.model_path),
        "output_dir": str(job.mounts.output),
        data: str(contents.dataset_path),
        **mount_paths.below_model(spec, job.mounts),
    }
    sources = {"pretrained_model_name_or_path": "MODEL_DIR", "output_dir": "OUTPUT_DIR", data: "DATASET_DIR"}
    if spec.device == "auto":
        values["device"], sources["device"] = job.devices.type, job.devices.why
    precision = compatibility.resolve_precision(spec, job.topology)
    if precision != spec.mixed_precision:
        values["mixed_precision"] = precision
        sources["mixed_precision"] = f"auto: {job.devices.type} with plugin={spec.plugin}"
    epochs = spec.num_train_epochs
    if epochs and examples and steps.by_epochs(spec):
        values["max_train_steps"] = steps.steps_of(epochs, spec, examples, job.cluster.world_size)
        sources["num_train_step"] = f"computed: epoch={epochs} over {counted(examples, 'image')}"
    job = replace(job, spec=spec.model_copy(update=values))
    spec, chosen = automatic.chosen(job)
    return replace(job, spec=spec), sources | chosen


def _build(read: _Read, inspected: _Inspected, resolved: _Resolved, checked: checks.Findings) -> JobPlan:
    """Stage 5: everything in one value."""
    given, job, contents = read.settings, resolved.job, inspected.contents
    left = contents.left_to_script() if job.has_script else ()
    problems = _problems(read, inspected, resolved, checked, left)
    refused = (read.misunderstood, given.problems, inspected.cluster.problems, resolved.script_problems)
    script, where = resolved.script, job.cluster
    # Of a script also the values of its secret arguments, which only the command has.
    words = script.arguments if script else (given.options.script_args or "").split()
    secrets = secrets_of(job.environ, words)
    return JobPlan(
        settings=_shown(resolved.table),
        mounts=tables.mounts_table(job.spec, job.mounts, contents, script.path if script else None, problems),
        arithmetic=(
            *inspected.fetched.notes,
            *estimates.lines(job),
            *sharing.lines(job.devices, job.cluster, inspected.options, job.environ),
            *checked.notes,
        ),
        network=(route.line(where.route, where.endpoint or "", job.environ),) if where.route else (),
        launch=None if any(refused) else _launch(read, inspected, resolved, job.cluster),
        launch_on=functools.partial(_launch, read, inspected, resolved),
        problems=tuple(sorted(problems)),
        warnings=(
            *given.warnings,
            *inspected.devices.warnings,
            *inspected.unreached,
            *inspected.fetched.warnings,
            *inspected.temporary.warnings,
            *python_variables.warnings(read.environ),
            *(f"{problem.subject}: {problem.found}; left to the script" for problem in left),
            *checked.warnings,
            *(() if script else (*advice.without_effect(given.spec), *advice.high_rates(given.spec))),
        ),
        output=job.mounts.output,
        cluster=job.cluster,
        stop_grace=given.options.stop_grace,
        given={name: _typed(name, each, secrets) for name, each in given.given.items()},
        secrets=secrets,
        lighter=functools.partial(estimates.lighter, job),
        passed_on=given.passed_on,
        awaited=inspected.fetched.awaited,
        temporary=inspected.temporary,
    )


def _problems(
    read: _Read,
    inspected: _Inspected,
    resolved: _Resolved,
    checked: checks.Findings,
    left: Sequence[Problem],
) -> set[Problem]:
    """Everything that is wrong, except what is left to a user's script."""
    return {
        *read.misunderstood,
        *read.settings.problems,
        *inspected.fetched.problems,
        *inspected.accelerate.problems,
        *inspected.cluster.problems,
        *inspected.temporary.problems,
        *(problem for problem in inspected.contents.problems if problem not in left),
        *resolved.script_problems,
        *accelerate.contradictions(inspected.accelerate, resolved.job.spec, resolved.job.cluster),
        *checked.problems,
    }


def _shown(table: Mapping[str, Value]) -> dict[str, Value]:
    arguments = table["script_args"]
    hidden = without_secrets_in(arguments.value) if arguments.value else arguments.value
    return {**table, "script_args": replace(arguments, value=hidden)}


def _typed(name: str, given: Given, secrets: tuple[str, ...]) -> str:
    text = as_typed(given.text)
    return redact(without_secrets_in(text) if name == "script_args" else text, secrets)


def _launch(read: _Read, inspected: _Inspected, resolved: _Resolved, cluster: Cluster) -> LaunchPlan:
    """The command, in an environment with the folders of installed packages and with the network if allowed."""
    options, environ = inspected.options, dict(read.environ)
    if inspected.fetched.import_path:
        environ["PYTHONPATH"] = python_path(environ.get("PYTHONPATH"), *inspected.fetched.import_path)
    online = {} if options.offline or "HF_HUB_OFFLINE" in environ else {"HF_HUB_OFFLINE": "0"}
    spec = resolved.job.spec
    if steps.by_epochs(read.settings.spec):  # the worker computes them: another batch has others
        names = spec.model_fields_set - {"max_train_steps"}
        spec = RunSpec.model_validate({name: getattr(spec, name) for name in names})
    given = read.settings.spec  # the worker knows the images and its nodes
    spec = spec.model_copy(update={name: getattr(given, name) for name in caching.SETTINGS})
    binding = sharing.numa_binding(inspected.devices.type).value
    host = Host(read.home, sys.executable, inspected.devices.cores, environ, binding)
    passed_on = {**online, **read.settings.passed_on, **inspected.temporary.environment()}
    return command.build(spec, cluster, host, passed_on, options, resolved.script)
