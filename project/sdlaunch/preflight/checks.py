"""Everything that can be checked before training begins: a flat list of checks, all problems at once."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdjob.dataset import validation_split
from sdjob.model import fit
from sdjob.problems import ExitCode, JobError, Problem, bad_input, bad_output, bad_setting, no_hardware
from sdjob.settings import compatibility
from sdlaunch.preflight import captions, device_memory, images, packages, resume, system_limits, volumes
from sdlaunch.preflight.job import Finding, Job, Note
from sdlaunch.preflight.timeouts import NoAnswer, Task, no_answer

_PROBES = 5


@dataclass(frozen=True)
class Findings:
    """What all checks together found."""

    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def run(job: Job) -> Findings:
    """What every check finds; they run side by side, since each waits for another disk or mount."""
    under_way = [(check, Task(functools.partial(_guarded(check.look), job))) for check in CHECKS]
    found = [finding for check, task in under_way for finding in _outcome(check, task, job)]
    found = list(dict.fromkeys(found))  # one closed folder stands in the way of several checks
    return Findings(
        tuple(finding for finding in found if isinstance(finding, Problem)),
        tuple(finding for finding in found if isinstance(finding, str)),
        tuple(finding.text for finding in found if isinstance(finding, Note)),
    )


def _outcome(check: Check, task: Task[Sequence[Finding]], job: Job) -> Sequence[Finding]:
    try:
        return task.result(job.until)
    except NoAnswer:
        return [no_answer(check.subject, check.where(job), job.patience, check.code)]


def _combination(job: Job) -> list[Problem]:
    model = job.contents.model
    of_model = compatibility.model_problems(job.spec, model) if model else []
    return [*compatibility.problems(job.spec, job.topology), *of_model]


def _devices(job: Job) -> list[Problem]:
    have, want = job.devices.count, job.cluster.nproc_per_node
    if job.devices.problems or job.devices.type == "cpu" or have is None or want <= have:
        return list(job.devices.problems)
    return [
        no_hardware(
            "NPROC_PER_NODE",
            f"{want} processes, and {have} {job.devices.type} devices on this node",
            f"Use NPROC_PER_NODE={have}, or a machine with {want} devices.",
        )
    ]


def _output_writable(job: Job) -> list[Problem]:
    """Proves by writing that the output folder can be made and written, and leaves nothing behind."""
    for _ in range(_PROBES):
        try:
            return _probed(job.mounts.output)
        except (FileNotFoundError, FileExistsError) as error:
            # Nodes that start together make and remove the same folder under each other's feet.
            problem = _unwritable(job.mounts.output, error)
        except OSError as error:
            return [_unwritable(job.mounts.output, error)]
    return [problem]


def _probed(output: Path) -> list[Problem]:
    """Writes into the folder, which is made for it and goes again. Raises OSError."""
    made: list[Path] = []
    try:
        for folder in reversed((output, *output.parents)):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        _write_probe(output / f".probe-{os.urandom(8).hex()}")
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # in use by another node by now
                folder.rmdir()
    return []


def _output_apart(job: Job) -> list[Problem]:
    """Results among the inputs would be taken for a second model, or for images, by the next run."""
    output = job.mounts.output.resolve()
    inputs = (("MODEL_DIR", job.mounts.model), ("DATASET_DIR", job.mounts.dataset))
    return [
        bad_setting(
            "OUTPUT_DIR",
            f"{job.mounts.output} is {variable} or lies in it ({folder})",
            "Set OUTPUT_DIR to a folder outside the model and the dataset, such as /output.",
        )
        for variable, folder in inputs
        if output.is_relative_to(folder.resolve())
    ]


def _write_probe(probe: Path) -> None:
    """As a checkpoint is put in place: a file in a folder, which then gets another name. Raises OSError."""
    renamed = probe.with_name(f"{probe.name}-renamed")
    try:
        probe.mkdir()
        with (probe / "file").open("xb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        try:
            probe.rename(renamed)
        except OSError as error:  # some mounts of object stores know no folders, and so no names of theirs
            found = f"a folder with files cannot be renamed there ({error.strerror})"
            raise OSError(errno.ENOTSUP, found) from error
    finally:
        for folder in (probe, renamed):
            shutil.rmtree(folder, ignore_errors=True)


def _unwritable(output: Path, error: OSError) -> Problem:
    remedy = "Mount a writable volume there, or set OUTPUT_DIR to a writable folder."
    match error.errno:
        case errno.ENOTDIR | errno.EEXIST:
            found = f"{output} is a file, not a folder, or lies below one"
        case errno.EACCES | errno.EPERM:
            found = f"{output} cannot be written by user {os.getuid()}"
        case errno.EROFS:
            found = f"{output} is mounted read-only"
        case errno.ENOSPC | errno.EDQUOT:
            found = f"no space left in {output}"
            remedy = "Free some space, mount a larger volume, or set OUTPUT_DIR to another folder."
        case _:
            found = f"{output}: {error.strerror}"
    return bad_output("OUTPUT_DIR", found, remedy)


def _model(job: Job) -> list[Finding]:
    """Shapes against configs, and what the model was made for. A script may know other models."""
    model = job.contents.model
    if model is None:
        return []
    misfits = fit.problems(model)
    notes = model.single.notes if model.single else ()
    doubts = [*notes, *fit.surplus(model), *fit.too_small(model, job.spec.resolution)]
    if job.has_script:
        doubts += [f"{problem.subject}: {problem.found}; left to the script" for problem in misfits]
    return [*([] if job.has_script else misfits), *doubts]


def _class_images(job: Job) -> list[Problem]:
    folder = job.spec.class_data_dir
    if (
        job.spec.concepts_list
        or not job.spec.with_prior_preservation
        or folder is None
        or Path(folder).is_dir()
    ):
        return []
    return [
        bad_input(
            "class_data_dir",
            f"{folder} is not a folder",
            "Correct the path, or unset it: class images are then generated under the output folder.",
        )
    ]


def _held_out(job: Job) -> list[Problem]:
    data, folder = job.contents.dataset, job.spec.validation_data_dir
    if data and job.spec.validation_split:
        return validation_split.problems(job.spec, data)
    if folder is None or Path(folder).is_dir():
        return []
    remedy = "Correct the path, or unset it: there is then no validation loss."
    return [bad_input("validation_data_dir", f"{folder} is not a folder", remedy)]


def _guarded(check: Callable[[Job], Sequence[Finding]]) -> Callable[[Job], Sequence[Finding]]:
    """A check whose file system fails reports that, instead of ending the launcher."""

    def guarded(job: Job) -> Sequence[Finding]:
        try:
            return check(job)
        except JobError as error:
            return list(error.problems)
        except OSError as error:
            where = str(error.filename or "file system")
            if Path(where).is_relative_to(job.mounts.output):
                return [_unwritable(job.mounts.output, error)]
            return [bad_input(where, error.strerror or str(error), "Check the mount and its permissions.")]

    return guarded


@dataclass(frozen=True)
class Check:
    """One check, and what is said if it never ends: subject, place, exit code."""

    look: Callable[[Job], Sequence[Finding]]
    subject: str
    where: Callable[[Job], Path | str]
    code: int = ExitCode.BAD_INPUT


def _output(job: Job) -> Path:
    return job.mounts.output


CHECKS: tuple[Check, ...] = (
    Check(_combination, "settings", lambda _: "the table of combinations", ExitCode.BAD_SETTING),
    Check(_devices, "device", lambda job: job.devices.type, ExitCode.NO_HARDWARE),
    Check(device_memory.findings, "memory", lambda job: job.devices.type, ExitCode.NO_HARDWARE),
    Check(packages.findings, "Python packages", lambda _: sys.executable, ExitCode.NO_HARDWARE),
    Check(
        lambda job: system_limits.shared_memory(job.spec, job.cluster),
        "dataloader_num_workers",
        lambda _: system_limits.SHM,
        ExitCode.NO_HARDWARE,
    ),
    Check(
        lambda job: system_limits.open_files(job.spec, job.cluster),
        "open files",
        lambda _: "the system",
        ExitCode.NO_HARDWARE,
    ),
    Check(
        lambda job: system_limits.rendezvous(job.cluster),
        "MASTER_PORT",
        lambda job: str(job.cluster.endpoint),
        ExitCode.NO_HARDWARE,
    ),
    Check(_output_apart, "OUTPUT_DIR", _output, ExitCode.BAD_SETTING),
    Check(_output_writable, "OUTPUT_DIR", _output, ExitCode.OUTPUT_FULL),
    Check(volumes.findings, "OUTPUT_DIR", _output, ExitCode.OUTPUT_FULL),
    Check(_model, "MODEL_DIR", lambda job: job.contents.model_path),
    Check(captions.findings, "DATASET_DIR", lambda job: job.contents.dataset_path),
    Check(images.findings, "DATASET_DIR", lambda job: job.contents.dataset_path),
    Check(images.of_concepts, "concepts_list", lambda job: str(job.spec.concepts_list)),
    Check(_class_images, "class_data_dir", lambda job: str(job.spec.class_data_dir)),
    Check(_held_out, "validation_data_dir", lambda job: str(job.spec.validation_data_dir)),
    Check(resume.findings, "resume", _output),
)
