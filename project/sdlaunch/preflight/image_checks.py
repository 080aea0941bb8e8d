"""Images that are decoded before the job starts: all of a small dataset, a sample of a large one, or as set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sdjob.dataset import validation_split
from sdjob.dataset.concepts import concepts_of
from sdjob.dataset.detect import dataset_in
from sdjob.dataset.formats import DatasetInfo
from sdjob.dataset.splits import TO_TRAIN
from sdjob.dataset.verify import verify_all, verify_sample
from sdjob.problems import JobError, Problem, bad_input
from sdlaunch.preflight.job import Finding, Job

ALL_OF = 64  # datasets of up to so many images are decoded entirely
SAMPLED = 4  # images of larger ones
_KEPT = 0.2  # fraction of the time for the checks that stays free; the worker decodes the rest


def findings(job: Job) -> list[Finding]:
    """Unusable images of the dataset, and a folder name that has a meaning in other trainers."""
    info = job.contents.dataset
    if info is None:
        return []
    found = _decoded(job, info)
    repeats = re.fullmatch(
        r"(\d+)_.+", info.path.name
    )  # kohya's scripts read them from the name: `10_sks dog`
    if repeats and int(repeats[1]) > 1:
        found.append(
            f"DATASET_DIR: the {repeats[1]} of {info.path.name} is not read as repeats here: set epoch or "
            "num_train_step; for several subjects, set the weight of each in concepts_list"
        )
    return found


def of_concepts(job: Job) -> list[Finding]:
    """Every subject of a list: its entry, its images, and its class images where they are given."""
    spec = job.spec
    if not spec.concepts_list:
        return []
    found: list[Finding] = []
    for concept in concepts_of(spec):
        folders = [concept.instance_data_dir, *([concept.class_data_dir] if concept.class_data_dir else [])]
        for folder in folders if spec.with_prior_preservation else folders[:1]:
            try:
                is_class = folder != concept.instance_data_dir
                wanted = TO_TRAIN if is_class else None
                info = dataset_in(folder, spec, captions=False, wanted_splits=wanted)
                found += [] if is_class else validation_split.problems(spec, info)
                found += _decoded(job, info)
            except JobError as error:
                found += error.problems
    return found


def _decoded(job: Job, info: DatasetInfo) -> list[Finding]:
    if job.spec.verify_images == "none":
        return []
    if job.spec.verify_images == "sample" and info.num_examples > ALL_OF:
        return _tolerated(job, verify_sample(info, SAMPLED), SAMPLED)
    bad, checked = verify_all(info, job.until - _KEPT * job.patience)
    found = _tolerated(job, bad, checked)
    if checked < info.num_examples:
        found.append(
            f"DATASET_DIR: {checked:,} of {info.num_examples:,} images checked within "
            f"check_timeout={job.patience:g}; the others are checked when the job starts"
        )
    return found


def _tolerated(job: Job, bad: Sequence[Problem], checked: int) -> list[Finding]:
    """Problems, or with bad_samples=skip a warning for up to max_bad_samples of them."""
    if (
        not bad
        or job.spec.bad_samples == "stop"
        or len(bad) > job.spec.max_bad_samples
        or len(bad) == checked
    ):
        return list(bad)
    names = ", ".join(problem.subject for problem in bad[:3])
    return [f"DATASET_DIR: {len(bad)} of {checked} checked images cannot be used and are skipped: {names}"]


def class_images(job: Job) -> list[Problem]:
    """The folder of class images, where one is given. A list of subjects names its own."""
    spec = job.spec
    needed = spec.with_prior_preservation and not spec.concepts_list
    remedy = "Correct the path, or unset it: class images are then generated below the output folder."
    return _folder("class_data_dir", spec.class_data_dir, remedy) if needed else []


def held_out(job: Job) -> list[Problem]:
    """The fraction of the dataset, or the folder, that is held out for validation."""
    if job.contents.dataset and job.spec.validation_split:
        return validation_split.problems(job.spec, job.contents.dataset)
    remedy = "Correct the path, or unset it: there is then no validation loss."
    return _folder("validation_data_dir", job.spec.validation_data_dir, remedy)


def _folder(setting: str, folder: str | None, remedy: str) -> list[Problem]:
    if folder is None or Path(folder).is_dir():
        return []
    return [bad_input(setting, f"{folder} is not a folder", remedy)]
