"""What is under the mounts: which model and which dataset a job uses."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sdjob.dataset import splits
from sdjob.dataset.concepts import concepts_of
from sdjob.dataset.detect import dataset_in, find_dataset
from sdjob.dataset.formats import DatasetInfo
from sdjob.model.hub_cache import is_hub_name
from sdjob.model.pipeline import PipelineFolder, find_of
from sdjob.problems import Problem
from sdjob.settings.run_spec import RunSpec
from sdlaunch.inputs import mounts as mount_paths
from sdlaunch.inputs.mounts import Mounts
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.timeouts import Task, outcome

_MOUNT_VARIABLES = ("MODEL_DIR", "DATASET_DIR", "PROJECT_DIR")


@dataclass(frozen=True)
class Contents:
    """The model and the dataset of a job; None: not recognized, and `problems` says why."""

    model: PipelineFolder | None
    dataset: DatasetInfo | None
    subjects: tuple[DatasetInfo, ...]  # the subjects of concepts_list, instead of a dataset
    model_path: Path  # the path of the model, or where it was expected
    dataset_path: Path
    dataset_root: Path  # the folder that was searched for the dataset
    problems: tuple[Problem, ...]

    @property
    def data(self) -> tuple[DatasetInfo, ...]:
        """Everything that is trained on."""
        return (self.dataset,) if self.dataset else self.subjects

    def left_to_script(self) -> tuple[Problem, ...]:
        """Problems with readable inputs: a user's script may support what the worker does not."""
        readable = [
            path for path in (self.model_path, self.dataset_path) if os.access(path, os.R_OK | os.X_OK)
        ]
        return tuple(
            problem
            for problem in self.problems
            if problem.subject not in _MOUNT_VARIABLES
            and any(Path(problem.subject).is_relative_to(path) for path in readable)
        )


def look(mounts: Mounts, options: LaunchOptions, spec: RunSpec, awaited: Collection[str] = ()) -> Contents:
    """Recognize the model and the dataset, each in a thread, since its mount may be slow.

    `awaited`: of model_name and dataset_name those that are downloaded later, and not looked for yet.
    """
    timeout = options.check_timeout
    until = time.monotonic() + timeout
    search_model = Task(lambda: _model(mounts, options, spec, awaited))
    search_dataset = Task(lambda: _dataset(mounts, options, spec, awaited))
    search_subjects = Task(lambda: _subjects(spec))
    search_project = Task(lambda: _project(mounts, options))
    model, model_problems = outcome(search_model, until, "MODEL_DIR", mounts.model, timeout)
    dataset, dataset_problems = outcome(search_dataset, until, "DATASET_DIR", mounts.dataset, timeout)
    concepts_list = spec.concepts_list or ""
    subjects, subject_problems = outcome(search_subjects, until, "concepts_list", concepts_list, timeout)
    _, project_problems = outcome(search_project, until, "PROJECT_DIR", mounts.project, timeout)
    model_problems = _or_online(model_problems, options.model_name, options)
    dataset_problems = _or_online(dataset_problems, options.dataset_name, options)
    return Contents(
        model,
        dataset,
        subjects or (),
        model.path if model else mounts.model / (options.model_name or ""),
        dataset.path if dataset else mounts.dataset / (options.dataset_name or ""),
        mounts.dataset / (options.dataset_name or ""),
        (*model_problems, *dataset_problems, *subject_problems, *project_problems),
    )


def _model(
    mounts: Mounts, options: LaunchOptions, spec: RunSpec, awaited: Collection[str]
) -> PipelineFolder | None:
    if "model_name" in awaited:
        return None
    mount_paths.require("MODEL_DIR", mounts.model, "the model", options.model_name)
    spec = spec.model_copy(update=mount_paths.below_model(spec, mounts))
    return find_of(spec, mounts.model, options.model_name)


def _dataset(
    mounts: Mounts, options: LaunchOptions, spec: RunSpec, awaited: Collection[str]
) -> DatasetInfo | None:
    if "dataset_name" in awaited or spec.concepts_list:
        return None
    mount_paths.require("DATASET_DIR", mounts.dataset, "the dataset", options.dataset_name)
    return find_dataset(
        mounts.dataset,
        options.dataset_name,
        captions=spec.recipe_facts.reads_captions,
        image_column=spec.image_column,
        caption_column=spec.caption_column,
        wanted_splits=splits.by_setting(spec.dataset_split),
    )


def _subjects(spec: RunSpec) -> tuple[DatasetInfo, ...]:
    concepts = concepts_of(spec) if spec.concepts_list else ()
    return tuple(dataset_in(concept.instance_data_dir, spec, captions=False) for concept in concepts)


def _project(mounts: Mounts, options: LaunchOptions) -> None:
    if options.project_dir:
        mount_paths.require("PROJECT_DIR", mounts.project, "the project")


def _or_online(problems: Iterable[Problem], name: str | None, options: LaunchOptions) -> tuple[Problem, ...]:
    """Add to a name that the hub may have how to download it."""
    if not options.offline or not is_hub_name(name):
        return tuple(problems)
    return tuple(
        replace(each, remedy=f"{each.remedy.rstrip('.')}; or set offline=0 to download {name} from the hub.")
        if "does not exist" in each.found
        else each
        for each in problems
    )
