"""Where a job begins: anew, from a checkpoint that it may continue, or nowhere, because it is finished."""

from __future__ import annotations

from sdjob import fingerprint, resume
from sdjob.concepts import concepts_of
from sdjob.dataset import dataset_in
from sdjob.output import OutputLayout, StepFolder
from sdjob.problem import Problem
from sdlaunch.job import Finding, Job, Note

_COMPARED_FILES = 20_000  # of a data set; the worker looks at each file of a larger one when the job starts


def findings(job: Job) -> list[Finding]:
    """The checkpoint that the worker will go on from, and every setting in which this job differs from that run.

    Of a checkpoint the sizes are compared, not each byte, which takes minutes; of the pictures names and sizes.
    """
    if job.has_script:  # which resumes in its own way
        return []
    layout = OutputLayout(job.mounts.output)
    found: list[Finding] = []

    def passed_over(folder: StepFolder, defect: str) -> None:
        found.append(f"{folder.path} is not whole and is passed over: {defect}")

    start = resume.newest(layout, job.spec.resume, passed_over, hashes=False)
    if start is None:
        return [*found, Note("resume: starts at the beginning")]
    if differences := _differences(job, start):
        return [*found, *differences]
    if resume.is_finished(job.spec, layout, start):
        return [*found, Note(f"resume: already finished, at step {start.step}")]
    return [*found, Note(f"resume: from step {start.step} of {job.spec.max_train_steps}")]


def _differences(job: Job, start: StepFolder) -> list[Problem]:
    """Nothing where a mount is wrong, which is said already. Raises JobError."""
    spec, model = job.spec, job.contents.model
    if model is None or not (job.contents.dataset or spec.concepts_list):
        return []
    concepts = concepts_of(spec) if spec.recipe == "dreambooth" else ()
    infos = (
        [job.contents.dataset]
        if job.contents.dataset
        else [dataset_in(concept.instance_data_dir, spec, captions=False) for concept in concepts]
    )
    many = sum(len(info.files) for info in infos) > _COMPARED_FILES
    identity = fingerprint.model_identity(model)
    wanted = fingerprint.facts_of(spec, identity, [] if many else infos, concepts)
    made_by = resume.values_of(start.path)["fingerprint"]
    if many:
        made_by = made_by | {"dataset_name": wanted["dataset_name"]}
    return fingerprint.differences(made_by, wanted, start.path)
