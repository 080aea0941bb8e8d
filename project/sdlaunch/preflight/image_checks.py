"""Images that are decoded before the job starts: all of a small dataset, a sample of a large one, or as set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sdjob.dataset import validation_split
from sdjob.dataset.concepts import concepts_of, too_few_class_images
from sdjob.dataset.detect import dataset_in
from sdjob.dataset.formats import DatasetInfo
from sdjob.dataset.splits import HELD_OUT, TO_TRAIN
from sdjob.dataset.verify import verify_all, verify_sample
from sdjob.problems import JobError, Problem, bad_input
from sdlaunch.preflight.job import Finding, Job, Note

ALL_OF = 64  # datasets of up to so many images are decoded entirely
SAMPLED = 4  # images of larger ones
_KEPT = 0.2  # fraction of the time for the checks that stays free; the worker decodes the rest


def findings(job: Job) -> list[Finding]:
    """Unusable images of the dataset, and a folder name that has a meaning in other trainers."""
    info = job.contents.dataset
    if info is None:
        return []
    try:
        found = _decoded(job, info, "DATASET_DIR")
    except JobError as error:  # a table that cannot be read
        found = list(error.problems)
    repeats = re.fullmatch(r"(\d+)_.+", info.path.name)  # to kohya's scripts, as in `10_sks dog`
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
        try:
            info = dataset_in(concept.instance_data_dir, spec, captions=False)
            found += [*validation_split.problems(spec, info), *_decoded(job, info, "concepts_list")]
        except JobError as error:
            found += error.problems
        if concept.class_data_dir and spec.with_prior_preservation:
            found += _class_images(job, concept.class_data_dir, "concepts_list")
    return found


def _class_images(job: Job, folder: str, setting: str) -> list[Finding]:
    """Whether a folder holds enough images of the class, and usable ones."""
    try:
        info = dataset_in(folder, job.spec, captions=False, wanted_splits=TO_TRAIN)
        too_few = too_few_class_images(job.spec, info)
        return [*too_few, *_decoded(job, info.first(job.spec.num_class_images), setting)]
    except JobError as error:
        return list(error.problems)


def _decoded(job: Job, info: DatasetInfo, setting: str) -> list[Finding]:
    if job.spec.verify_images == "none":
        return []
    is_sample = job.spec.verify_images == "sample" and info.num_examples > ALL_OF
    until = job.until - _KEPT * job.patience
    examined = verify_sample(info, SAMPLED) if is_sample else verify_all(info, until)
    found = _tolerated(job, examined.bad, examined.count, setting)
    for line, is_warning in examined.lines():
        found.append(f"{setting}: {line}" if is_warning else Note(f"{setting}: {line}"))
    if examined.count < info.num_examples and not is_sample:
        found.append(
            f"{setting}: {examined.count:,} of {info.num_examples:,} images checked within "
            f"check_timeout={job.patience:g}; the others are checked when the job starts"
        )
    return found


def _tolerated(job: Job, bad: Sequence[Problem], checked: int, setting: str) -> list[Finding]:
    """Problems, or with bad_samples=skip a warning for up to max_bad_samples of them."""
    tolerable = job.spec.bad_samples == "skip" and len(bad) <= job.spec.max_bad_samples and len(bad) < checked
    if not (bad and tolerable):
        return list(bad)
    names = ", ".join(problem.subject for problem in bad[:3])
    return [f"{setting}: {len(bad)} of {checked} checked images cannot be used and are skipped: {names}"]


def class_images(job: Job) -> list[Finding]:
    """The folder of class images, where one is given. A list of subjects names its own."""
    spec = job.spec
    if not spec.class_data_dir or not spec.with_prior_preservation or spec.concepts_list:
        return []
    remedy = "Correct the path, or unset it: class images are then generated below the output folder."
    return _absent("class_data_dir", spec.class_data_dir, remedy) or _class_images(
        job, spec.class_data_dir, "class_data_dir"
    )


def held_out(job: Job) -> list[Finding]:
    """The fraction of the dataset, or the images of the folder, that are held out for validation. Raises JobError."""
    spec, setting = job.spec, "validation_data_dir"
    if job.contents.dataset and spec.validation_split:
        return list(validation_split.problems(spec, job.contents.dataset))
    if not spec.validation_data_dir:
        return []
    remedy = "Correct the path, or unset it: there is then no validation loss."
    if absent := _absent(setting, spec.validation_data_dir, remedy):
        return absent
    captions = spec.recipe_facts.reads_captions
    info = dataset_in(spec.validation_data_dir, spec, captions=captions, wanted_splits=HELD_OUT)
    return _decoded(job, info, setting)


def _absent(setting: str, folder: str, remedy: str) -> list[Finding]:
    return [] if Path(folder).is_dir() else [bad_input(setting, f"{folder} is not a folder", remedy)]
