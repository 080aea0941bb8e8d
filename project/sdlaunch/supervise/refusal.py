"""A job that is not started: who else is at work in its output folder, and the word that it leaves there."""

from __future__ import annotations

import time
from dataclasses import replace

from sdjob.output.layout import OutputLayout
from sdlaunch.plan import JobPlan
from sdlaunch.preflight.timeouts import NoAnswer, Task
from sdlaunch.supervise import lock

_PATIENCE = 5.0  # seconds for an output folder that may not answer


def complete(job: JobPlan, verb: str) -> JobPlan:
    """The plan with the problem of another job in the folder; a run that was refused leaves failure.json."""
    try:
        return Task(lambda: _complete(job, verb)).result(time.monotonic() + _PATIENCE)
    except NoAnswer:  # which is among the problems already
        return job


def _complete(job: JobPlan, verb: str) -> JobPlan:
    layout = OutputLayout(job.output)
    if taken := lock.in_use(layout, job.cluster):
        return replace(job, problems=tuple(sorted({*job.problems, *taken})))
    named = "OUTPUT_DIR" in job.given or job.output.is_dir()  # else nobody would look there
    if verb == "run" and named:
        from sdlaunch.supervise import failure_report

        failure_report.record_refusal(layout, job.cluster, job.problems, job.secrets)
    return job
