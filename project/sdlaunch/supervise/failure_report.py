"""failure.json: one file for the job, made of what each of its nodes says of its own end.

Every node keeps its own word in run/failure-<node>.json. The node whose word names the cause, and not only what
followed from it elsewhere, is the one that failure.json repeats; the others are listed there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdjob.output.layout import OutputLayout
from sdjob.problems import ExitCode, Problem
from sdlaunch.cluster.resolve import Cluster
from sdlaunch.display.redact import redact
from sdlaunch.display.run_records import as_json, write
from sdlaunch.supervise import verdict as verdicts
from sdlaunch.supervise.verdict import Verdict

_VAGUE = ("training failed", "bug or lost peer")  # classes that may be the echo of a failure elsewhere


def record(layout: OutputLayout, cluster: Cluster, verdict: Verdict, secrets: tuple[str, ...]) -> None:
    """Writes down how this node ended, or takes back what it said of an earlier run. Raises OSError."""
    mine = _path(layout, cluster.node_rank)
    if verdict.failed:
        text = as_json({"node": cluster.node_rank, **verdict.to_dict()})
        layout.run.mkdir(parents=True, exist_ok=True)
        write(mine, redact(text, secrets))
    else:
        mine.unlink(missing_ok=True)
    _merge(layout, cluster.nodes)


def clear(layout: OutputLayout, cluster: Cluster) -> None:
    """Takes back what this node said of an earlier run, for one that begins. Raises OSError."""
    _path(layout, cluster.node_rank).unlink(missing_ok=True)
    _merge(layout, cluster.nodes)


def record_refusal(
    layout: OutputLayout, cluster: Cluster, problems: Sequence[Problem], secrets: tuple[str, ...]
) -> None:
    """Writes down why a job was not started, if the output folder can take that."""
    if not any(p.subject == "OUTPUT_DIR" and p.code == ExitCode.BAD_SETTING for p in problems):
        with contextlib.suppress(OSError):
            record(layout, cluster, verdicts.refused(problems), secrets)


def _merge(layout: OutputLayout, nodes: int) -> None:
    """Brings failure.json up to date with the words of all nodes; once more if one has spoken meanwhile."""
    said = None
    while said != (now := _said(layout, nodes)):
        said = now
        if said:
            first, *others = sorted(said, key=_order)
            known = [{key: each[key] for key in ("node", "class", "code", "root_rank")} for each in others]
            write(layout.failure, as_json({**first, "other_nodes": known}))
        else:
            layout.failure.unlink(missing_ok=True)


def _said(layout: OutputLayout, nodes: int) -> list[dict[str, Any]]:
    """What the nodes of this job say, read again; files of nodes that an earlier job had more of are removed."""
    found = []
    for path in sorted(layout.run.glob("failure-*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(path.read_text(encoding="utf-8"))
            if said["node"] < nodes:
                found.append(said)
            else:
                path.unlink()
    return found


def _order(said: dict[str, Any]) -> tuple[bool, str, int]:
    """The cause first: what names it before what may be an echo, then by time."""
    echo = said["code"] == ExitCode.TRAINING_FAILED and not said["problems"]
    vague = echo and (said["class"] in _VAGUE or said["root_rank"] is None)
    return vague, said["time"], said["node"]


def _path(layout: OutputLayout, node: int) -> Path:
    return layout.run / f"failure-{node}.json"
