"""Captions that say nothing. Prompts are counted by the worker, which has the tokenizer."""

from __future__ import annotations

from itertools import islice

from sdjob.problems import bad_input
from sdjob.settings.recipes import with_subjects
from sdlaunch.preflight.job import Finding, Job

SAMPLED_CAPTIONS = 2000


def findings(job: Job) -> list[Finding]:
    """Empty captions among the first of the dataset: some are a warning, all of them a problem."""
    data = job.contents.dataset
    texts = list(islice(data.format.captions(data), SAMPLED_CAPTIONS)) if data and not job.has_script else []
    empty = sum(not text.strip() for text in texts)
    if not data or not empty:
        return []
    checked = f"{'' if len(texts) == data.num_examples else 'the first '}{len(texts):,} captions"
    if empty == len(texts):
        remedy = (
            f"Write captions, set caption_column to the column that holds them, or use {with_subjects()}."
        )
        return [bad_input("DATASET_DIR", f"{data.path}: all of {checked} are empty", remedy)]
    return [f"DATASET_DIR: {empty:,} of {checked} are empty: their images are trained on without a prompt"]
