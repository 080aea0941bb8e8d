"""From everything that is known when the processes have ended to one verdict: pure."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sdjob import failure_patterns
from sdjob.exit_codes import ExitCode, meaning_of
from sdjob.problems import Problem, exit_code, no_hardware
from sdjob.protocol import STOP_SIGNALS, ExitNote, Heartbeat, OutputLine

if TYPE_CHECKING:  # it loads more than a plan needs
    from sdlaunch.supervise.hang import Hang

# torchrun's table: the failures of one poll, and last the one that it saw first.
_FAILED_RANK = re.compile(r"rank\s*:\s*(\d+) \(local_rank.{0,1000}?exitcode\s*:\s*(-?\d+)", re.DOTALL)
_SIGNALLED = re.compile(r"SignalException: Process \d+ got signal: (\d+)")  # torchrun itself
_KILLED_LOADER = re.compile(r"DataLoader worker \(pid.*(?:signal: Killed|exited unexpectedly)")
_ROOT_CAUSE = "Root Cause (first observed failure):"
_AFTER_SIGNAL: dict[int, str] = {
    signal.SIGKILL: "check the memory of the host, and what sends signals",
    signal.SIGBUS: "give the container more shared memory (--shm-size), or set dataloader_num_workers=0; "
    "a file of a cache that is cut while it is used has the same effect",
}
_START_AGAIN = "Start the same command again: it resumes from the newest whole checkpoint, if there is one."
_AFTER_CRASH = "look for the position in the log of that rank; try another plugin or attention backend"


@dataclass(frozen=True)
class Ending:
    """Everything that is known when the processes have ended."""

    returncode: int
    notes: tuple[ExitNote, ...]
    log_tail: tuple[OutputLine, ...]
    heartbeats: tuple[Heartbeat, ...] = ()
    oom_kills: int = 0  # processes of the container that the kernel killed for memory during the run
    stopped_by: int | None = None  # the first external stop signal
    forced_at: float | None = None  # when the grace time was over and the processes were signalled
    hang: Hang | None = None  # there was no progress, and the launcher ended the processes
    output: Problem | None = None  # the output folder is gone, or could not be written after a failure
    cause: Mapping[str, Any] | None = None  # the report of another node, whose failure ended the job here
    missing: str = ""  # nodes of several that had not joined at the end
    output_is_gone: bool = False

    @cached_property
    def log(self) -> str:
        """What torchrun and the ranks printed last."""
        return "\n".join(map(str, self.log_tail))

    @cached_property
    def failures(self) -> tuple[ExitNote, ...]:
        """Notes of failures by time, but for crashes that a restart has repaired and what followed from being ended."""
        return tuple(
            note
            for note in sorted(self.notes, key=lambda note: note.time)
            if note.code not in (ExitCode.FINISHED, ExitCode.STOPPED)
            and (self.forced_at is None or note.time < self.forced_at)
            and not (self.returncode == 0 and note.code == ExitCode.TRAINING_FAILED and not note.problems)
        )

    @cached_property
    def root(self) -> tuple[int | None, int | None]:
        """(rank, exit status) of the failure that explains the others in torchrun's table.

        Failures of one poll (0.1 s) have no certain order, but a rank that a signal ended was not ended by its peers;
        unless the first one was, too: torchrun then kills those that wait for it.
        """
        failed = self._table
        if failed and failed[0][1] < 0:
            return failed[0]
        by_signal = [(rank, status) for rank, status in failed if status < 0 and -status not in STOP_SIGNALS]
        return next(iter((*by_signal, *failed)), (None, None))

    @cached_property
    def is_killed(self) -> bool:
        """Whether a SIGKILL that is not the launcher's ended a process of this job: a rank, its loader, torchrun."""
        if self.forced_at is not None:
            return False
        statuses = [self.returncode, *(status for _, status in self._table)]
        texts = (*(note.error for note in self.notes), self.log)
        return -signal.SIGKILL in statuses or any(map(_KILLED_LOADER.search, texts))

    @cached_property
    def _table(self) -> tuple[tuple[int, int], ...]:
        """(rank, exit status) in torchrun's table, the first failure first."""
        before, _, first = self.log.rpartition(_ROOT_CAUSE)
        others = before.rpartition("Failures:")[2]
        return tuple((int(rank), int(status)) for rank, status in _FAILED_RANK.findall(first + others))


@dataclass(frozen=True)
class Verdict:
    """How a run ended, the evidence, and what to do."""

    code: int
    evidence: tuple[str, ...]
    remedy: str
    root_rank: int | None = None
    step: int | None = None
    problems: tuple[Problem, ...] = ()
    traceback: str | None = None
    special: str | None = None  # a class among those with the same code
    time: float = field(default_factory=time.time)  # time of the root cause
    on_host: bool = False  # too little memory of the host, not of the device

    @property
    def failure_class(self) -> str:
        return self.special or meaning_of(self.code).name

    @property
    def failed(self) -> bool:
        return self.code not in (ExitCode.FINISHED, ExitCode.STOPPED)

    def to_dict(self) -> dict[str, Any]:
        return {
            "class": self.failure_class,
            "code": int(self.code),
            "root_rank": self.root_rank,
            "step": self.step,
            "time": datetime.fromtimestamp(self.time, timezone.utc).isoformat(timespec="milliseconds"),
            "evidence": list(self.evidence),
            "remedy": self.remedy,
            "problems": [problem.to_dict() for problem in self.problems],
            "traceback": self.traceback,
        }


def refused(problems: Sequence[Problem]) -> Verdict:
    """The verdict on a job that was not started because of these problems."""
    code = exit_code(problems)
    deciding = [problem for problem in sorted(problems) if problem.code == code]
    return Verdict(code, _evidence(deciding), deciding[0].remedy, problems=tuple(sorted(problems)))


def _evidence(problems: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(f"{problem.subject}: {problem.found}" for problem in problems)


def judge(end: Ending) -> Verdict:
    """The verdict of the first rule that applies, with the last step that any rank reported."""
    verdict = next(verdict for rule in _RULES if (verdict := rule(end)))
    steps = [note.step for note in end.notes] + [beat.step for beat in end.heartbeats]
    last = max((step for step in steps if step), default=None)
    return replace(verdict, step=verdict.step or last)


def advised(verdict: Verdict, settings: Sequence[str]) -> Verdict:
    """An out-of-memory verdict with the settings that are estimated to fit, if there are any."""
    if verdict.code != ExitCode.OUT_OF_MEMORY or not settings:
        return verdict
    remedy = f"Settings that need clearly less: {'; '.join(settings)}."
    problems = tuple(replace(problem, remedy=remedy) for problem in verdict.problems)
    return replace(verdict, remedy=remedy, problems=problems)


# --- rules -------------------------------------------------------------------------------------------


def _hung(end: Ending) -> Verdict | None:
    if not end.hang:
        return None
    stages = ", ".join(sorted({beat.stage for beat in end.heartbeats}))
    last = f"; last: {stages}" if stages else ""
    return Verdict(
        ExitCode.TRAINING_FAILED,
        (f"no progress on any rank for {end.hang.seconds:.0f} s (hang_timeout){last}", *end.hang.innermost()),
        "Start again to resume. If it happens again, read the stacks in logs/: a rank that does not wait in "
        "torch.distributed holds up the others. If the job is only slow, raise hang_timeout.",
        end.hang.culprit(),
        traceback=end.hang.text() or None,
        special="hang",
    )


def _no_output(end: Ending) -> Verdict | None:
    """The output folder is gone, or fails, where ranks cannot even leave a note, and no note explains the end."""
    if not end.output or (any(note.problems for note in end.failures) and not end.output_is_gone):
        return None
    rank, _ = end.root
    problems = (end.output,)
    return Verdict(end.output.code, _evidence(problems), end.output.remedy, rank, problems=problems)


def _out_of_host_memory(end: Ending) -> Verdict | None:
    """Peers of a killed process fail too, so that a crash explains nothing.

    The kernel counts what it kills in the container, which may run other programs besides this job.
    """
    explained = end.failures and end.failures[0].code != ExitCode.TRAINING_FAILED
    if not (end.oom_kills and end.is_killed) or end.returncode == 0 or explained:
        return None
    evidence = f"the kernel killed {end.oom_kills} processes for memory (memory.events: oom_kill)"
    remedy = "Give the container more memory, or use fewer dataloader_num_workers or processes."
    return Verdict(ExitCode.OUT_OF_MEMORY, (evidence,), remedy, end.root[0], on_host=True)


def _killed(end: Ending) -> Verdict | None:
    """A rank was ended by an external signal, or in code that is not Python, and so left no note; or torchrun was."""
    rank, status = end.root
    if status is None and not any(note.code == ExitCode.STOPPED for note in end.notes):
        status = end.returncode
    if status is None or status >= 0 or end.forced_at is not None:
        return None
    # A worker answers a request to stop by itself. Peers of a killed rank may fail, but only by a crash.
    if -status in STOP_SIGNALS or any(n.code != ExitCode.TRAINING_FAILED for n in end.failures):
        return None
    killed = -status == signal.SIGKILL
    if not killed and (from_log := _from_log(end)):
        return from_log
    who = "torchrun" if rank is None else f"rank {rank}"
    evidence = f"{who} was killed by {_in_words(status)}, and not by the launcher"
    remedy = f"Start again to resume. If it happens again, {_AFTER_SIGNAL.get(-status, _AFTER_CRASH)}."
    special = "killed from outside" if killed else "crashed"
    return Verdict(ExitCode.TRAINING_FAILED, (evidence,), remedy, rank, special=special)


def _failed(end: Ending) -> Verdict | None:
    """The first rank that left a note."""
    if not end.failures:
        return None
    note = end.failures[0]
    special = None
    if note.code == ExitCode.TRAINING_FAILED:
        subjects = {problem.subject for problem in note.problems}
        special = "diverged" if subjects & {"loss", "weights"} else None if subjects else "bug or lost peer"
    known = None if note.problems else failure_patterns.find(note.error)
    remedies = [problem.remedy for problem in note.problems] + ([known.remedy] if known else [])
    return Verdict(
        note.code,
        (note.error,) if note.error else _evidence(note.problems),
        next(filter(None, remedies), "Read the log of that rank; the settings are in run/spec.yaml."),
        note.rank,
        note.step,
        note.problems,
        note.traceback or None,
        special,
        note.time,
        on_host=any(problem.subject == failure_patterns.HOST_MEMORY for problem in note.problems),
    )


def _saved(end: Ending) -> Verdict | None:
    """The workers answered a request to stop."""
    note = next((note for note in end.notes if note.code == ExitCode.STOPPED), None)
    if note is None:
        return None
    evidence = f"the workers {'saved and ended' if note.step else 'ended before the first step'}"
    return Verdict(ExitCode.STOPPED, (evidence,), _START_AGAIN, step=note.step, problems=note.problems)


def _finished(end: Ending) -> Verdict | None:
    return Verdict(ExitCode.FINISHED, ("all processes ended with 0",), "") if end.returncode == 0 else None


def _interrupted(end: Ending) -> Verdict | None:
    """Stopped before the workers had saved; a process that is still starting is ended by a request to stop."""
    signalled = _SIGNALLED.search(end.log)
    ended_by = int(signalled[1]) if signalled else -(end.root[1] or end.returncode)
    if end.stopped_by is None and ended_by not in STOP_SIGNALS:
        return None
    return Verdict(ExitCode.STOPPED, ("the workers were ended before they had saved",), _START_AGAIN)


def _from_log(end: Ending) -> Verdict | None:
    """The log has a line, of the rank that failed first if that is known, that names the cause."""
    rank, _ = end.root
    lines = (line for line in end.log_tail if rank is None or line.rank in (None, rank))
    text = "\n".join(map(str, lines))
    if not (known := failure_patterns.find(text)):
        return None
    on_host = known.subject == failure_patterns.HOST_MEMORY
    return Verdict(known.code, (known.line(text),), known.remedy, rank, on_host=on_host)


def _unexplained(end: Ending) -> Verdict:
    rank, status = end.root
    if status == ExitCode.OUTPUT_FULL:  # which may be why it left no note
        said = tuple(str(line) for line in end.log_tail if line.rank == rank)[-2:]
        return Verdict(status, said, "Free some space, and start again to resume.", rank)
    evidence = [f"torchrun ended with {_in_words(end.returncode)}"]
    if status is None:
        evidence += [line.rstrip() for line in end.log.splitlines() if line.strip()][-3:]
    else:
        evidence.append(f"rank {rank} failed first, with {_in_words(status)}")
    return Verdict(ExitCode.TRAINING_FAILED, tuple(evidence), "Read the log of that rank.", rank)


def _of_another_node(end: Ending) -> Verdict | None:
    """Another node failed; what happened here is at most a lost connection."""
    if end.cause is None or end.returncode == 0 or any(n.problems for n in end.failures):
        return None
    if end.oom_kills and end.is_killed:
        return None
    cause = end.cause
    about = "; ".join(cause["evidence"]) or cause["class"]
    evidence = f"node {cause['node']} failed, and this node with it: {about}"
    return Verdict(int(cause["code"]), (evidence,), cause["remedy"], special=cause["class"])


def _not_met(end: Ending) -> Verdict | None:
    """torchrun gave up waiting for other nodes, or one of them left while it waited."""
    if "RendezvousTimeoutError" in end.log and end.missing:
        found = f"no rendezvous with {end.missing}"
        remedy = "Start the job on all nodes; raise rendezvous_timeout if they start later."
        return refused([no_hardware("nodes", found, remedy)])
    if "RendezvousClosedError" in end.log:
        return Verdict(ExitCode.STOPPED, ("another node ended the job while the nodes met",), _START_AGAIN)
    return None


# What the workers report takes precedence over what is inferred from how they ended.
_RULES: tuple[Callable[[Ending], Verdict | None], ...] = (
    _hung,
    _no_output,
    _of_another_node,
    _out_of_host_memory,
    _killed,
    _failed,
    _saved,
    _finished,
    _interrupted,
    _not_met,
    _from_log,
    _unexplained,
)


def _in_words(status: int) -> str:
    """An exit status as Python gives it: negative for a signal."""
    if status >= 0:
        return f"exit status {status}"
    known = -status in set(signal.Signals)
    return signal.Signals(-status).name if known else f"signal {-status}"
