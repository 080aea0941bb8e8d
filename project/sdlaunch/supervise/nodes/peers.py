"""The other nodes of a job, as the shared output folder shows them: which have started, and which have failed.

A node starts by creating run/lock-<node>, and ends a failed job by writing run/failure-<node>.json.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdjob.exit_codes import ExitCode, meaning_of
from sdjob.output.layout import OutputLayout
from sdjob.protocol import ExitNote
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.supervise import failure_report, lock, processes
from sdlaunch.supervise.hang import Signs
from sdlaunch.supervise.nodes.meeting import Reminder

_LOOK_EVERY = 2.0  # seconds; the folder may be on slow storage
# Seconds without progress on this node after which the job is over, since another node has failed.
_SILENCE_IF_FINAL = 5.0  # for a reason that the next start would meet again
_SILENCE_IF_CRASHED = (
    60.0  # in a crash: torchrun may start the ranks again, or they may notice it by their connections
)
_REPORTED = 3.0  # seconds until the report of a node that ended a moment earlier can be read


@dataclass
class Peers:
    """The nodes of a job besides this one. Reports that were there at the start belong to an earlier run."""

    layout: OutputLayout
    cluster: Cluster
    notes: Path  # of this node
    say: Callable[[str], None]
    patience: float  # seconds that torchrun waits for the other nodes
    is_waiting: bool = False  # torchrun runs no rank: it waits for other nodes
    _looked_at: float = 0.0
    _reminder: Reminder | None = None
    _reports_at_start: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    _signs: Signs | None = None  # of the ranks here, since another node has failed
    _saved_at: float | None = None
    _final_report: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._reports_at_start = self._reports()

    def failure(self) -> dict[str, Any] | None:
        """The report of a node that has failed since this one started; one with a known cause first."""
        reports = self._reports()
        new = [report for node, report in reports.items() if report != self._reports_at_start.get(node)]
        return min(new, key=failure_report.order, default=None)

    def awaited_cause(self) -> dict[str, Any] | None:
        """The failure of another node that ended the job here, or would end every start; soon after the end here."""
        until = time.monotonic() + _REPORTED
        while self.cluster.nodes > 1 and not self._final_report:
            report = self.failure()
            if report and meaning_of(report["code"]).final:
                return report
            if time.monotonic() > until:
                break
            time.sleep(0.2)
        return self._final_report

    def job_is_over(self, torchrun: int | None = None) -> bool:
        """Whether the job is over on this node too: another one has failed for good, or was lost while all saved.

        `torchrun`: its process id; None: it has not started yet.
        """
        now = time.monotonic()
        if self.cluster.nodes == 1 or now - self._looked_at < _LOOK_EVERY:
            return False
        self._looked_at = now
        report = self.failure()
        if torchrun is not None:  # until then the meeting of the nodes says what is waited for
            self._remind(torchrun, report)
        if self.is_waiting and self._all_ranks_saved():
            return True
        if report is None:
            self._signs = None
            return False
        self._signs = self._signs or Signs(self.notes, now)
        silent = self._signs.silence(now)
        if meaning_of(report["code"]).final:
            is_over = silent > _SILENCE_IF_FINAL
        else:
            is_over = silent > _SILENCE_IF_CRASHED and torchrun is not None and not self.is_waiting
        if is_over:
            self._final_report = report
        return self._final_report is not None

    def _all_ranks_saved(self) -> bool:
        """Whether the ranks here have saved and ended; torchrun waits 300 s for that of a node that is lost."""
        notes = ExitNote.read_all(self.notes)
        if len(notes) < self.cluster.nproc_per_node or any(each.code != ExitCode.STOPPED for each in notes):
            return False
        self._saved_at = self._saved_at or time.monotonic()
        return time.monotonic() - self._saved_at > _SILENCE_IF_FINAL

    def missing(self) -> str:
        """The nodes that have not started, or else the others, which have not joined."""
        started = lock.hosts_of_nodes(self.layout, self.cluster)
        others = [node for node in range(self.cluster.nodes) if node != self.cluster.node_rank]
        absent = [node for node in others if node not in started]
        nodes = absent or others
        names = ", ".join(f"{node} ({started[node]})" if node in started else str(node) for node in nodes)
        text = f"node{'s' * (len(nodes) > 1)} {names} of {self.cluster.nodes}"
        if not absent:
            return f"{text} at {self.cluster.endpoint}"
        ended = [
            f"node {node} last ended with {self._reports_at_start[node]['class']}"
            for node in absent
            if node in self._reports_at_start
        ]
        shared = f"no start seen in {self.layout.run}, which all nodes share"
        return f"{text}: {'; '.join([shared, *ended])}"

    def _remind(self, torchrun: int, report: Mapping[str, Any] | None) -> None:
        """Say why nothing happens here."""
        is_waiting = not processes.has_children(torchrun)
        if is_waiting != self.is_waiting or not (is_waiting or report):
            self.is_waiting, self._reminder = is_waiting, None
        if not (is_waiting or report):
            return
        limit = self.patience if self.is_waiting else _SILENCE_IF_CRASHED
        self._reminder = self._reminder or Reminder(self.say, limit)
        if report:
            failed = f"node {report['node']} of {self.cluster.nodes}, which ended with {report['class']}"
        self._reminder.waiting(failed if report else self.missing())

    def _reports(self) -> dict[int, dict[str, Any]]:
        if self.cluster.nodes == 1:
            return {}
        reports = failure_report.read_all(self.layout, self.cluster.nodes)
        return {each["node"]: each for each in reports if each["node"] != self.cluster.node_rank}
