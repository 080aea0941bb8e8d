"""Preflight check for `resume`: fresh start, resume from a checkpoint, or already finished."""

from __future__ import annotations

from sdjob.dataset.concepts import concepts_of
from sdjob.model import vae
from sdjob.model.pipeline import PipelineFolder, find_pipeline
from sdjob.model.single_file import converted_folder
from sdjob.output import fingerprint, newest_checkpoint
from sdjob.output.layout import OutputLayout, StepFolder
from sdjob.problems import JobError, Problem
from sdlaunch.preflight.job import Finding, Job, Note

_COMPARED_FILES = 20_000  # of a dataset; the worker looks at each file of a larger one when the job starts


def findings(job: Job) -> list[Finding]:
    """The checkpoint that the worker will resume from, and every setting in which this job differs from that run.

    Files of a checkpoint are compared by size, since reading them takes minutes; images by name and size.
    """
    if job.has_script:  # it resumes in its own way
        return []
    layout = OutputLayout(job.mounts.output)
    found: list[Finding] = []

    def skipped(folder: StepFolder, defect: str) -> None:
        found.append(f"{folder.path} is incomplete or damaged and is skipped: {defect}")

    start = newest_checkpoint.newest(layout, job.spec.resume, skipped, hashes=False)
    if start is None:
        return [*found, Note("resume: starts at the beginning")]
    if differences := _differences(job, start):
        return [*found, *differences]
    if newest_checkpoint.is_finished(job.spec, layout, start.step):
        return [*found, Note(f"resume: already finished, at step {start.step}")]
    return [*found, Note(f"resume: from step {start.step} of {job.spec.max_train_steps}")]


def _differences(job: Job, start: StepFolder) -> list[Problem]:
    """Nothing where a mount is wrong, which another check reports. Raises JobError."""
    spec = job.spec
    infos = job.contents.data
    model = job.contents.model
    if model is None or not infos:
        return []
    concepts = concepts_of(spec) if spec.recipe_facts.has_subjects else ()
    few = sum(len(info.files) for info in infos) <= _COMPARED_FILES
    own = _model_facts(job, model)
    wanted = fingerprint.facts_of(spec, model.architecture, own, infos if few else (), concepts)
    known = {"model_name": bool(own), "dataset_name": few}
    problems = fingerprint.differences(
        newest_checkpoint.read_values(start.path)["fingerprint"], wanted, start.path
    )
    return [problem for problem in problems if known.get(problem.subject, True)]


def _model_facts(job: Job, model: PipelineFolder) -> dict[str, str]:
    """As the worker sees it, which converts a single file to a folder; none: that folder does not exist any more."""
    cache = OutputLayout(job.mounts.output).cache(job.spec.cache_dir)
    part = model.parts["vae"]
    other = str(part.folder) if model.own_vae else None
    if other and part.folder.is_file():
        other = str(vae.converted_folder(part, cache))
    elif model.single is None:
        return fingerprint.model_facts(model)
    folder = converted_folder(model.single, cache) if model.single else model.path
    try:
        found = find_pipeline(folder, None, allow_pickle=job.spec.allow_pickle, vae=other)
        return fingerprint.model_facts(found)
    except JobError:
        return {}
