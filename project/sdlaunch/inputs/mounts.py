"""What lies under the mounts: which model, which dataset. Nothing is ever written to a read-only mount."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from sdjob.dataset.concepts import concepts_of
from sdjob.dataset.detect import dataset_in, find_dataset
from sdjob.dataset.formats import DatasetInfo
from sdjob.model.archive import looks_like_archive
from sdjob.model.pipeline import PipelineFolder, find_pipeline
from sdjob.model.single_file import SUFFIXES
from sdjob.problems import JobError, Problem, bad_input
from sdjob.settings.run_spec import RunSpec
from sdlaunch.preflight.timeouts import NoAnswer, Task, no_answer
from sdlaunch.settings.options import LaunchOptions

Found = TypeVar("Found")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Mounts:
    """Absolute paths of the four mounts."""

    model: Path
    dataset: Path
    project: Path
    output: Path


@dataclass(frozen=True)
class Contents:
    """The model and the dataset of a job; None: not recognised, and `problems` says why."""

    model: PipelineFolder | None
    dataset: DatasetInfo | None
    subjects: tuple[DatasetInfo, ...]  # of a list of subjects, in place of a dataset
    model_path: Path  # of the model that was found, or where it was looked for
    dataset_path: Path
    problems: tuple[Problem, ...]

    @property
    def data(self) -> tuple[DatasetInfo, ...]:
        """All that is trained on."""
        return (self.dataset,) if self.dataset else self.subjects


def resolve(options: LaunchOptions, home: Path) -> Mounts:
    """The mounts as absolute paths; `home` is the folder of train.sh."""
    return Mounts(
        _absolute(options.model_dir),
        _absolute(options.dataset_dir),
        _absolute(options.project_dir) if options.project_dir else home,
        _absolute(options.output_dir),
    )


def look(mounts: Mounts, options: LaunchOptions, spec: RunSpec, awaited: Collection[str] = ()) -> Contents:
    """Recognises the model and the dataset, side by side, since mounts may be slow.

    `awaited`: of model_name and dataset_name those that are downloaded later, and not looked at yet.
    """

    def model() -> PipelineFolder | None:
        if "model_name" in awaited:
            return None
        _usable_mount("MODEL_DIR", mounts.model, "the model", options.model_name)
        return find_pipeline(
            mounts.model,
            options.model_name,
            allow_pickle=spec.allow_pickle,
            prediction_type=spec.prediction_type,
            single_file_config=spec.single_file_config,
        )

    def dataset() -> DatasetInfo | None:
        if "dataset_name" in awaited or spec.concepts_list:
            return None
        _usable_mount("DATASET_DIR", mounts.dataset, "the dataset", options.dataset_name)
        return find_dataset(
            mounts.dataset,
            options.dataset_name,
            captions=spec.recipe_facts.reads_captions,
            image_column=spec.image_column,
            caption_column=spec.caption_column,
        )

    def subjects() -> tuple[DatasetInfo, ...]:
        concepts = concepts_of(spec) if spec.concepts_list else ()
        return tuple(dataset_in(concept.instance_data_dir, spec, captions=False) for concept in concepts)

    def project() -> None:
        if options.project_dir:
            _usable_mount("PROJECT_DIR", mounts.project, "the project", None)

    until = time.monotonic() + options.check_timeout
    finding_model, finding_dataset = Task(lambda: _attempt(model)), Task(lambda: _attempt(dataset))
    finding_project, finding_subjects = Task(lambda: _attempt(project)), Task(lambda: _attempt(subjects))
    patience = options.check_timeout
    found_model, model_problems = _answer(finding_model, until, "MODEL_DIR", mounts.model, patience)
    found_dataset, dataset_problems = _answer(finding_dataset, until, "DATASET_DIR", mounts.dataset, patience)
    named = Path(spec.concepts_list or "")
    found_subjects, subject_problems = _answer(finding_subjects, until, "concepts_list", named, patience)
    _, project_problems = _answer(finding_project, until, "PROJECT_DIR", mounts.project, patience)
    model_problems = _or_online(model_problems, options.model_name, options)
    dataset_problems = _or_online(dataset_problems, options.dataset_name, options)
    return Contents(
        found_model,
        found_dataset,
        found_subjects or (),
        found_model.path if found_model else mounts.model / (options.model_name or ""),
        found_dataset.path if found_dataset else mounts.dataset / (options.dataset_name or ""),
        (*model_problems, *dataset_problems, *subject_problems, *project_problems),
    )


def _answer(
    task: Task[tuple[Found | None, tuple[Problem, ...]]],
    until: float,
    variable: str,
    path: Path,
    patience: float,
) -> tuple[Found | None, tuple[Problem, ...]]:
    try:
        return task.result(until)
    except NoAnswer:
        return None, (no_answer(variable, path, patience),)


def is_hub_name(name: str | None) -> bool:
    """Whether this can be a name of the Hugging Face hub: owner/name."""
    return name is not None and _HUB_NAME.fullmatch(name) is not None


def _or_online(problems: Iterable[Problem], name: str | None, options: LaunchOptions) -> tuple[Problem, ...]:
    """For a name that the hub might know, how to ask the hub."""
    if not options.offline or not is_hub_name(name):
        return tuple(problems)
    return tuple(
        replace(each, remedy=f"{each.remedy.rstrip('.')}; or set offline=0 to download {name} from the hub.")
        if "does not exist" in each.found
        else each
        for each in problems
    )


def _attempt(find: Callable[[], Found]) -> tuple[Found | None, tuple[Problem, ...]]:
    try:
        return find(), ()
    except JobError as error:
        return None, error.problems
    except OSError as error:  # a mount that fails while it is being read
        where = str(error.filename or "a mount")
        return None, (bad_input(where, f"{error.strerror or error}", "Check the mount and its permissions."),)


def _usable_mount(variable: str, path: Path, holds: str, name: str | None) -> None:
    """Raises JobError unless the folder is there, readable and not empty; an absolute name needs no mount, and a
    model may be a file."""
    if name and Path(name).is_absolute():
        return
    remedy = f"Mount {holds} there, or set {variable} to the folder that holds it."
    try:
        empty = not any(path.iterdir())
        if not os.access(path, os.X_OK):  # then it can be listed, but nothing in it opened
            raise PermissionError
    except FileNotFoundError:
        raise JobError(bad_input(variable, f"{path} does not exist", remedy)) from None
    except NotADirectoryError:
        if variable == "MODEL_DIR" and not name and _is_model(path):
            return
        raise JobError(bad_input(variable, f"{path} is a file, not a folder", remedy)) from None
    except PermissionError:
        found = f"{path} cannot be read by user {os.getuid()}"
        remedy = f"Make it readable for that user, or set {variable} to another folder."
        raise JobError(bad_input(variable, found, remedy)) from None
    if empty:
        raise JobError(bad_input(variable, f"{path} is empty", remedy))


def _is_model(path: Path) -> bool:
    """Whether a file may be a model, however broken."""
    return path.name.endswith(SUFFIXES) or looks_like_archive(path)


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
