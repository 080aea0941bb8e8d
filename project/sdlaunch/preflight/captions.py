"""Captions that say nothing or are not read. Prompts are counted by the worker, which has the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from sdjob.dataset.detect import has_unread_captions
from sdjob.dataset.formats import DatasetInfo
from sdjob.dataset.text_files import LONGEST_CAPTION
from sdjob.dataset.verify import first_captions
from sdjob.problems import bad_input
from sdjob.settings.recipes import with_captions, with_subjects
from sdjob.settings.run_spec import RunSpec
from sdlaunch.preflight.job import Finding, Job

SAMPLED_CAPTIONS = 2000


def findings(job: Job) -> list[Finding]:
    """Captions and columns that are ignored, and empty captions. A script reads what it wants."""
    data = job.contents.data
    if not data or job.has_script:
        return []
    return [*_unused_columns(job.spec, data[0]), *(_lengths(job) if data[0].caption_column else _unread(job))]


def _unused_columns(spec: RunSpec, data: DatasetInfo) -> Iterator[Finding]:
    """Columns that the user names and that a dataset of this format does not have."""
    if data.row_counts:
        return
    names = {"image_column": data.image_column, "caption_column": data.caption_column}
    for name, column in names.items():
        value = getattr(spec, name)
        if value != RunSpec.model_fields[name].default and column not in (None, value):
            yield f"{name}: {value!r} has no effect with {data.format.description}"


def _unread(job: Job) -> Iterator[Finding]:
    """Captions in a recipe that gives all images of a subject one prompt."""
    for data in job.contents.data:
        if has_unread_captions(data, job.spec.caption_column):
            yield (
                f"DATASET_DIR: the captions in {data.path} are ignored: with recipe={job.spec.recipe} each image has "
                f"the prompt of its subject; to train on captions use {with_captions()}"
            )


def _lengths(job: Job) -> list[Finding]:
    """Empty and overlong captions among the first of the dataset: a warning; a problem if all are empty."""
    (data,) = job.contents.data
    texts = first_captions(data, SAMPLED_CAPTIONS)
    empty = sum(not text.strip() for text in texts)
    checked = f"{'' if len(texts) == data.num_examples else 'the first '}{len(texts):,} captions"
    if texts and empty == len(texts):
        remedy = (
            f"Write captions, set caption_column to the column that holds them, or use {with_subjects()}."
        )
        return [bad_input("DATASET_DIR", f"{data.path}: all of {checked} are empty", remedy)]
    long = sum(len(text) > LONGEST_CAPTION for text in texts)
    effects = {
        "are empty: their images are trained on without a prompt": empty,
        f"have more than {LONGEST_CAPTION:,} characters: the others are not read": long,
    }
    return [f"DATASET_DIR: {count:,} of {checked} {effect}" for effect, count in effects.items() if count]
