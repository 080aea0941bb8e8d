"""failure.json: one file for the job, made of the reports of its nodes; also for a job that is refused.

Every node keeps its own report in run/failure-<node>.json. failure.json repeats the one that names the cause, and not
only what followed from it on other nodes, and lists the others.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from sdjob import reading
from sdjob.exit_codes import ExitCode
from sdjob.formatting import as_json
from sdjob.output.layout import OutputLayout
from sdjob.redact import redact
from sdjob.writing import write_text
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.plan import JobPlan
from sdlaunch.supervise import live_page, lock
from sdlaunch.supervise import verdict as verdicts
from sdlaunch.supervise.verdict import Verdict
from sdlaunch.timeouts import NoAnswer, Task

_PATIENCE = 5.0  # seconds for an output folder that may not answer
_VAGUE = ("training failed", "bug or lost peer")  # failures that may follow from one on another node
_NAME = re.compile(r"failure-(\d{1,9})\.json", re.ASCII)
# What a node writes (text_of). Anyone who writes to the folder may have left something else.
_Report = TypedDict(
    "_Report",
    {
        "node": int,
        "class": str,
        "code": Annotated[int, Field(gt=0, lt=256)],
        "root_rank": int | None,
        "step": NotRequired[int | None],
        "time": str,
        "evidence": list[str],
        "remedy": str,
        "problems": list[dict[str, str | int]],
        "traceback": NotRequired[str | None],
        "log": NotRequired[str | None],
    },
)


def record(layout: OutputLayout, cluster: Cluster, verdict: Verdict, secrets: tuple[str, ...]) -> None:
    """Write how this node ended, or remove its report if it did not fail. Raises OSError."""
    if not verdict.failed:
        clear(layout, cluster)
        return
    layout.make(layout.run)
    write_text(
        _path(layout, cluster.node_rank), text_of(layout, cluster, verdict, secrets) + "\n", private=True
    )
    _merge(layout, cluster.nodes)


def text_of(layout: OutputLayout, cluster: Cluster, verdict: Verdict, secrets: tuple[str, ...]) -> str:
    """The report of this node."""
    log = log_of(layout, cluster.node_rank, verdict.root_rank)
    where = str(log) if log.exists() else None
    return redact(as_json({"node": cluster.node_rank, **verdict.to_dict(), "log": where}), secrets)


def log_of(layout: OutputLayout, node: int, rank: int | None) -> Path:
    """The log to read: that of the rank if it belongs to this node, or else that of the node."""
    if rank is not None and (path := layout.rank_log(node, rank)).exists():
        return path
    return layout.log(node)


def clear(layout: OutputLayout, cluster: Cluster) -> None:
    """Remove this node's report. Raises OSError."""
    _path(layout, cluster.node_rank).unlink(missing_ok=True)
    _merge(layout, cluster.nodes)


def refuse(job: JobPlan, verb: str) -> JobPlan:
    """Handle a refused job: report a lock held by another job, and write failure.json for a run."""
    try:
        return Task(lambda: _refuse(job, verb)).result(time.monotonic() + _PATIENCE)
    except NoAnswer:  # already among the problems
        return job


def _refuse(job: JobPlan, verb: str) -> JobPlan:
    layout = OutputLayout(job.output)
    if taken := lock.in_use(layout, job.cluster):
        return replace(job, problems=tuple(sorted({*job.problems, *taken})))
    misplaced = any(p.subject == "OUTPUT_DIR" and p.code == ExitCode.BAD_SETTING for p in job.problems)
    expected = "OUTPUT_DIR" in job.given or job.output.is_dir()  # otherwise no user would look there
    if verb == "run" and expected and not misplaced:
        with contextlib.suppress(OSError):
            record(layout, job.cluster, verdicts.refused(job.problems), job.secrets)
            if job.cluster.node_rank == 0:
                live_page.refused(layout, reading.json_of(redact(as_json(job.to_dict()), job.secrets)))
    return job


def _merge(layout: OutputLayout, nodes: int) -> None:
    """Update failure.json from the reports of all nodes; again if one was written meanwhile."""
    merged = None
    while merged != (reports := read_all(layout, nodes)):
        merged = reports
        if reports:
            first, *others = sorted(reports, key=order)
            known = [{key: each[key] for key in ("node", "class", "code", "root_rank")} for each in others]
            write_text(layout.failure, as_json({**first, "other_nodes": known}) + "\n", private=True)
        else:
            layout.failure.unlink(missing_ok=True)


def read_all(layout: OutputLayout, nodes: int) -> list[dict[str, Any]]:
    """The reports of this job's nodes; those of an earlier job with more nodes are removed."""
    reports: list[dict[str, Any]] = []
    for path in sorted(layout.run.glob("failure-*.json")):
        name = _NAME.fullmatch(path.name)
        with contextlib.suppress(OSError, ValueError):
            if name and int(name[1]) >= nodes:
                path.unlink()
            elif name:
                report = reading.typed(_Report, reading.json_of(reading.content(path, reading.MESSAGE)))
                reports += [{**report}] if report["node"] == int(name[1]) else []
    return reports


def order(report: dict[str, Any]) -> tuple[bool, str, int]:
    """The cause before what may follow from it, then by time."""
    unexplained = report["code"] == ExitCode.TRAINING_FAILED and not report["problems"]
    vague = unexplained and (report["class"] in _VAGUE or report["root_rank"] is None)
    return vague, report["time"], report["node"]


def _path(layout: OutputLayout, node: int) -> Path:
    return layout.run / f"failure-{node}.json"
