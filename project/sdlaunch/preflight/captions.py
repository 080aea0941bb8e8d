"""The words of a job: prompts and captions that are cut, or that say nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from sdjob.dataset.captions import first_captions
from sdjob.dataset.detect import DatasetInfo
from sdjob.model import prompts
from sdjob.model.pipeline import PipelineFolder
from sdjob.problems import JobError, Problem, bad_input, no_hardware
from sdlaunch.preflight.job import Finding, Job

SAMPLED_CAPTIONS = 2000
_PATIENCE = 60.0  # seconds
_SHOWN = 60  # characters of a text in a message


def findings(job: Job) -> list[Finding]:
    """Texts that are cut at the end of what the text encoder sees, and captions that say nothing."""
    model, spec = job.contents.model, job.spec
    if model is None or job.has_script:
        return []
    given = [("validation_prompts", prompt) for prompt in spec.validation_prompts]
    if spec.recipe_facts.has_subjects:
        given.append(("instance_prompt", spec.instance_prompt))
        if spec.with_prior_preservation and spec.class_prompt:
            given.append(("class_prompt", spec.class_prompt))
    chunks = spec.prompt_chunks
    cut = set(_cut((prompt for _, prompt in given), model, chunks))
    limit = prompts.max_tokens(model, chunks)
    found: list[Finding] = [
        f"{name}: {_beginning(prompt)} has more than the {limit} tokens that the text encoder sees; the rest is cut"
        for name, prompt in given
        if prompt in cut
    ]
    return [*found, *(_captions(job.contents.dataset, model, chunks) if job.contents.dataset else [])]


def _captions(data: DatasetInfo, model: PipelineFolder, chunks: int) -> list[Finding]:
    texts = first_captions(data, SAMPLED_CAPTIONS)
    if not texts:
        return []
    looked = (
        f"{len(texts):,} captions"
        if len(texts) == data.num_examples
        else f"the first {len(texts):,} captions"
    )
    empty = sum(not text.strip() for text in texts)
    if empty == len(texts):
        remedy = "Write captions, set caption_column to the column that holds them, or use recipe=dreambooth."
        return [bad_input("DATASET_DIR", f"{data.path}: all of {looked} are empty", remedy)]
    found: list[Finding] = []
    if empty:
        found.append(
            f"DATASET_DIR: {empty:,} of {looked} are empty: their images are learned without any words"
        )
    if cut := _cut(texts, model, chunks):
        found.append(
            f"DATASET_DIR: {len(cut):,} of {looked} have more than the {prompts.max_tokens(model, chunks)} tokens "
            f"that the text encoder sees, and are cut, such as {_beginning(cut[0])}"
        )
    return found


def _beginning(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _cut(given: Iterable[str], model: PipelineFolder, chunks: int) -> list[str]:
    return prompts.too_long(given, model, count_elsewhere, chunks)


def count_elsewhere(given: Sequence[str], folder: Path) -> list[int]:
    """`prompts.count_tokens` in a process of its own: the launcher stays small while the job runs."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", prompts.__name__, str(folder)],
            input=json.dumps(given),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
        )
        answer = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        remedy = "Install the pinned packages of docker/requirements.txt."
        raise JobError(no_hardware("tokenizers", f"prompts cannot be counted ({said})", remedy)) from None
    if problems := answer.get("problems"):
        raise JobError(Problem(**problem) for problem in problems)
    return [int(count) for count in answer["counts"]]
