"""The checks before training starts, side by side; all problems are reported at once."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdjob.automatic import compilation, machine
from sdjob.exit_codes import ExitCode
from sdjob.formatting import counted
from sdjob.model import part_compatibility, trainable
from sdjob.problems import Problem, no_hardware
from sdjob.settings import compatibility
from sdlaunch import duration
from sdlaunch.preflight import (
    captions,
    data_use,
    estimates,
    image_checks,
    leftovers,
    output,
    packages,
    resume_check,
    system_limits,
)
from sdlaunch.preflight.job import Finding, Job, Note
from sdlaunch.publish import publish
from sdlaunch.timeouts import Task, outcome


@dataclass(frozen=True)
class Findings:
    """What all checks together found."""

    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def run(job: Job) -> Findings:
    """Runs all checks side by side, since each waits for another disk or mount."""
    under_way = [(check, Task(functools.partial(_findings, check, job))) for check in CHECKS]
    found = [finding for check, task in under_way for finding in _outcome(check, task, job)]
    found = list(dict.fromkeys(found))  # several checks may fail at one closed folder
    return Findings(
        tuple(finding for finding in found if isinstance(finding, Problem)),
        tuple(finding for finding in found if isinstance(finding, str)),
        tuple(finding.text for finding in found if isinstance(finding, Note)),
    )


def _findings(check: Check, job: Job) -> Sequence[Finding]:
    """What the check finds; an output folder that fails meanwhile is a problem of its own."""
    try:
        return check.find(job)
    except OSError as error:
        if error.filename and Path(error.filename).is_relative_to(job.mounts.output):
            return [output.unwritable(job.mounts.output, error)]
        raise


def _outcome(check: Check, task: Task[Sequence[Finding]], job: Job) -> Sequence[Finding]:
    found, problems = outcome(task, job.until, check.subject, check.where(job), job.patience, check.code)
    return problems if found is None else found


def _settings(job: Job) -> list[Problem]:
    model = job.contents.model
    of_model = part_compatibility.setting_problems(job.spec, model) if model else ()
    lacking = "" if job.has_script else machine.lacking(job.topology.device)
    return [
        *compatibility.problems(job.spec, job.topology),
        *compilation.problems(job.spec, job.topology, lacking),
        *of_model,
    ]


def _devices(job: Job) -> list[Problem]:
    count, processes = job.devices.count, job.cluster.nproc_per_node
    if job.devices.problems or job.devices.type == "cpu" or count is None or processes <= count:
        return list(job.devices.problems)
    return [
        no_hardware(
            "NPROC_PER_NODE",
            f"{counted(processes, 'process')}, and {counted(count, f'{job.devices.type} device')} on this node",
            f"Use NPROC_PER_NODE={count}, or a machine with {counted(processes, 'device')}.",
        )
    ]


def _model(job: Job) -> list[Finding]:
    """Parts that do not belong together, and a resolution below the model's. A script may support other models."""
    model = job.contents.model
    if model is None:
        return []
    misfits = part_compatibility.problems(model)
    warnings = [
        *(model.single.warnings if model.single else ()),
        *part_compatibility.low_resolution(model, job.spec.resolution),
    ]
    if job.has_script:
        left = (f"{problem.subject}: {problem.found}; left to the script" for problem in misfits)
        return [*warnings, *left]
    return [
        *misfits,
        *warnings,
        *([Note(lora)] if (lora := trainable.lora_summary(job.spec, model)) else []),
        Note("model: tensors are compared with configs by `check`, and by the job before it trains"),
    ]


def _publish(job: Job) -> Sequence[Finding]:
    return publish.findings(job.publish, job.environ, has_script=job.has_script) if job.publish else []


@dataclass(frozen=True)
class Check:
    """One check, and what the problem says if it never ends: subject, path, exit code."""

    find: Callable[[Job], Sequence[Finding]]
    subject: str
    where: Callable[[Job], Path | str]
    code: int = ExitCode.BAD_INPUT


def _output(job: Job) -> Path:
    return job.mounts.output


CHECKS: tuple[Check, ...] = (
    Check(_settings, "settings", lambda _: "the table of combinations", ExitCode.BAD_SETTING),
    Check(_devices, "device", lambda job: job.devices.type, ExitCode.NO_HARDWARE),
    Check(estimates.device_memory, "memory", lambda job: job.devices.type, ExitCode.NO_HARDWARE),
    Check(estimates.host_memory, "memory", lambda _: "the system", ExitCode.NO_HARDWARE),
    Check(packages.findings, "Python packages", lambda _: sys.executable, ExitCode.NO_HARDWARE),
    Check(system_limits.findings, "system limits", lambda _: "this machine", ExitCode.NO_HARDWARE),
    Check(output.separate_from_inputs, "OUTPUT_DIR", _output, ExitCode.BAD_SETTING),
    Check(output.writable, "OUTPUT_DIR", _output, ExitCode.OUTPUT_FULL),
    Check(leftovers.findings, "OUTPUT_DIR", _output, ExitCode.OUTPUT_FULL),
    Check(estimates.disk_space, "OUTPUT_DIR", _output, ExitCode.OUTPUT_FULL),
    Check(_model, "MODEL_DIR", lambda job: job.contents.model_path),
    Check(data_use.findings, "DATASET_DIR", lambda job: job.contents.dataset_path),
    Check(captions.findings, "DATASET_DIR", lambda job: job.contents.dataset_path),
    Check(image_checks.findings, "DATASET_DIR", lambda job: job.contents.dataset_path),
    Check(image_checks.of_concepts, "concepts_list", lambda job: str(job.spec.concepts_list)),
    Check(image_checks.class_images, "class_data_dir", lambda job: str(job.spec.class_data_dir)),
    Check(image_checks.held_out, "validation_data_dir", lambda job: str(job.spec.validation_data_dir)),
    Check(resume_check.findings, "resume", _output),
    Check(_publish, "publish", lambda job: job.publish or "", ExitCode.BAD_SETTING),
    Check(duration.findings, "OUTPUT_DIR", _output, ExitCode.OUTPUT_FULL),
)
