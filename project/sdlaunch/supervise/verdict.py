"""From what was left behind – notes, exit status, log, counters – to one verdict. Pure but for the readers."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sdjob.problems import ExitCode, Problem, exit_code
from sdlaunch.supervise.hang import Hang

_CLASSES = {
    ExitCode.FINISHED: "finished",
    ExitCode.BAD_SETTING: "bad setting",
    ExitCode.BAD_INPUT: "bad input",
    ExitCode.NO_HARDWARE: "hardware does not fit",
    ExitCode.TRAINING_FAILED: "training failed",
    ExitCode.OUT_OF_MEMORY: "out of memory",
    ExitCode.OUTPUT_FULL: "output cannot hold the result",
    ExitCode.STOPPED: "stopped",
}
_OOM_LINE = re.compile(r"OutOfMemoryError|CUDA out of memory|DefaultCPUAllocator: can't allocate memory")
_FULL_LINE = re.compile(r"No space left on device|Disk quota exceeded")
_ROOT_CAUSE = re.compile(
    r"Root Cause \(first observed failure\):.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL
)

_REQUESTS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Note:
    """What a worker says about its own end."""

    rank: int
    code: int
    step: int | None
    time: float
    error: str | None
    traceback: str | None
    problems: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Ending:
    """Everything that is known once the processes are gone."""

    returncode: int
    notes: tuple[Note, ...]
    log_tail: tuple[str, ...]
    oom_kills: int = 0  # processes that the kernel killed for memory, during the run
    stopped_by: int | None = None  # the first signal from outside
    forced_at: float | None = None  # when the grace time had passed and the processes were signalled
    hang: Hang | None = None  # nothing went forward any more, and the launcher ended the processes


@dataclass(frozen=True)
class Verdict:
    """How a run ended, why that is known, and what to do."""

    code: int
    evidence: tuple[str, ...]
    remedy: str
    root_rank: int | None = None
    step: int | None = None
    problems: tuple[Mapping[str, Any], ...] = field(default=())
    traceback: str | None = None
    special: str | None = None  # a class of its own among those with the same code
    time: float = field(default_factory=time.time)  # when the root cause showed

    @property
    def kind(self) -> str:
        return self.special or _CLASSES.get(ExitCode(self.code), "training failed")

    @property
    def failed(self) -> bool:
        return self.code not in (ExitCode.FINISHED, ExitCode.STOPPED)

    def to_dict(self) -> dict[str, Any]:
        return {
            "class": self.kind,
            "code": int(self.code),
            "root_rank": self.root_rank,
            "step": self.step,
            "time": datetime.fromtimestamp(self.time, timezone.utc).isoformat(timespec="milliseconds"),
            "evidence": list(self.evidence),
            "remedy": self.remedy,
            "problems": [dict(problem) for problem in self.problems],
            "traceback": self.traceback,
        }


def refused(problems: Sequence[Problem]) -> Verdict:
    """The verdict on a job that was not started for these problems."""
    code = exit_code(problems)
    found = [problem for problem in sorted(problems) if problem.code == code]
    return Verdict(
        code,
        tuple(f"{problem.subject}: {problem.found}" for problem in found),
        found[0].remedy,
        problems=tuple(problem.to_dict() for problem in sorted(problems)),
    )


def judge(end: Ending) -> Verdict:
    """The verdict: what the workers say goes before what is inferred from how they ended."""
    if end.hang:
        return _hung(end.hang, end)
    root = _root_cause(end.log_tail)
    failing = [
        note
        for note in sorted(end.notes, key=lambda note: note.time)
        if note.code not in (ExitCode.FINISHED, ExitCode.STOPPED)
        and (end.forced_at is None or note.time < end.forced_at)
        and not (end.returncode == 0 and _is_crash(note))  # a restart has fixed it
    ]
    # A rank that a signal ended leaves no note. SIGTERM and SIGINT are requests, which a worker answers by itself.
    killed = root is not None and root[1] < 0 and -root[1] not in _REQUESTS and end.forced_at is None
    # Peers of a killed process fail too, of its absence: their notes are no cause.
    if end.oom_kills and end.returncode != 0 and (not failing or failing[0].code == ExitCode.TRAINING_FAILED):
        return _host_memory(end, root)
    if killed and root and all(note.code == ExitCode.TRAINING_FAILED for note in failing):
        return (_told_by_log(end, root[0]) if root[1] != -signal.SIGKILL else None) or _killed(*root, end)
    if failing:
        return _from_note(failing[0])
    saved = [note for note in end.notes if note.code == ExitCode.STOPPED]
    if saved:
        how = "saved and ended" if saved[0].step else "ended before the first step"
        return _stopped(saved[0].step or None, f"the workers {how}", saved[0].problems)
    if end.returncode == 0:
        return Verdict(ExitCode.FINISHED, ("all processes ended with 0",), "")
    if end.stopped_by is not None:
        return _stopped(_last_step(end), "the workers were ended before they had saved")
    return _from_log(end, root)


def advised(verdict: Verdict, settings: Sequence[str]) -> Verdict:
    """An out-of-memory verdict with the settings that would fit, as far as they can be reckoned."""
    if verdict.code != ExitCode.OUT_OF_MEMORY or not settings:
        return verdict
    remedy = f"Settings that need clearly less: {'; '.join(settings)}."
    problems = tuple({**problem, "remedy": remedy} for problem in verdict.problems)
    return replace(verdict, remedy=remedy, problems=problems)


def _is_crash(note: Note) -> bool:
    return note.code == ExitCode.TRAINING_FAILED and not note.problems


def _from_note(note: Note) -> Verdict:
    evidence = (
        [note.error] if note.error else [f"{p.get('subject')}: {p.get('found')}" for p in note.problems]
    )
    remedies = [str(problem["remedy"]) for problem in note.problems if problem.get("remedy")]
    remedy = remedies[0] if remedies else "Read the log of that rank; the settings are in run/spec.yaml."
    return Verdict(
        note.code,
        tuple(evidence),
        remedy,
        note.rank,
        note.step,
        note.problems,
        note.traceback or None,
        _special(note),
        note.time,
    )


def _special(note: Note) -> str | None:
    """What a failed training came to: numbers that are none, or a fault of the program."""
    if note.code != ExitCode.TRAINING_FAILED:
        return None
    subjects = {problem.get("subject") for problem in note.problems}
    return "diverged" if subjects & {"loss", "weights"} else None if subjects else "bug or lost peer"


def _stopped(step: int | None, evidence: str, problems: Sequence[Mapping[str, Any]] = ()) -> Verdict:
    remedy = "Start the same command again: it goes on from the newest whole checkpoint, if there is one."
    return Verdict(ExitCode.STOPPED, (evidence,), remedy, None, step, tuple(problems))


def _host_memory(end: Ending, root: tuple[int, int] | None) -> Verdict:
    evidence = f"the kernel killed {end.oom_kills} processes for memory (memory.events: oom_kill)"
    remedy = "Give the container more memory, or use fewer dataloader_num_workers or processes."
    return Verdict(ExitCode.OUT_OF_MEMORY, (evidence,), remedy, root[0] if root else None, _last_step(end))


def _hung(hang: Hang, end: Ending) -> Verdict:
    evidence = (f"no rank went forward for {hang.seconds:.0f} s (hang_timeout)", *hang.places())
    remedy = (
        "Start again to resume. If it happens again, read the stacks in logs/: a rank that does not wait in "
        "torch.distributed holds up the others. If the job is only slow, raise hang_timeout."
    )
    return Verdict(
        ExitCode.TRAINING_FAILED,
        evidence,
        remedy,
        hang.culprit(),
        _last_step(end),
        traceback=hang.text() or None,
        special="hang",
    )


def _killed(rank: int, status: int, end: Ending) -> Verdict:
    """status: minus the signal that ended the rank, from outside or in code that is not Python."""
    evidence = f"rank {rank} was killed by {_status(status)}, and not by the launcher"
    special = "killed from outside" if status == -signal.SIGKILL else "crashed"
    remedies = {
        -signal.SIGKILL: "look at the memory of the host and who sends signals",
        -signal.SIGBUS: "give the container more shared memory (--shm-size), or set dataloader_num_workers=0",
    }
    advice = remedies.get(
        status, "the log of that rank may say where; try another plugin or attention backend"
    )
    remedy = f"Start again to resume. If it happens again, {advice}."
    return Verdict(ExitCode.TRAINING_FAILED, (evidence,), remedy, rank, _last_step(end), special=special)


def _from_log(end: Ending, root: tuple[int, int] | None) -> Verdict:
    """No worker left word: what the log and the exit status show."""
    rank = root[0] if root else None
    if told := _told_by_log(end, rank):
        return told
    evidence = [f"torchrun ended with {_status(end.returncode)}"]
    if root:
        evidence.append(f"rank {root[0]} failed first, with {_status(root[1])}")
    evidence += [line for line in end.log_tail if line.strip()][-3:] if not root else []
    remedy = "Read the log of that rank."
    return Verdict(ExitCode.TRAINING_FAILED, tuple(evidence), remedy, rank, _last_step(end))


def _told_by_log(end: Ending, rank: int | None) -> Verdict | None:
    """The verdict where the log has a line that is sure to name the cause."""
    step = _last_step(end)
    if line := _find(_OOM_LINE, end.log_tail):
        remedy = "Use a smaller batch_size with gradient_accumulation_steps, or gradient_checkpointing=1."
        return Verdict(ExitCode.OUT_OF_MEMORY, (line,), remedy, rank, step)
    if line := _find(_FULL_LINE, end.log_tail):
        remedy = (
            "Free some space, mount a larger volume, or keep fewer checkpoints (checkpoints_total_limit)."
        )
        return Verdict(ExitCode.OUTPUT_FULL, (line,), remedy, rank, step)
    return None


def _status(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _find(pattern: re.Pattern[str], lines: Iterable[str]) -> str | None:
    return next((line.strip() for line in lines if pattern.search(line)), None)


def _root_cause(lines: Iterable[str]) -> tuple[int, int] | None:
    """(rank, exit status) of the first failure in torchrun's table."""
    match = _ROOT_CAUSE.search("\n".join(lines))
    return (int(match[1]), int(match[2])) if match else None


def _last_step(end: Ending) -> int | None:
    """The newest step that any note or progress line tells of."""
    steps = [note.step for note in end.notes if note.step is not None]
    steps += [int(m[1]) for line in end.log_tail if (m := re.search(r"\bstep +(\d+)/\d+", line))]
    return max(steps, default=None)


# --- readers -----------------------------------------------------------------------------------------


def read_notes(folder: Path) -> tuple[Note, ...]:
    """All notes that can be read; half a note is none."""
    found = []
    for path in sorted(folder.glob("rank-*.json")):
        try:
            raw = json.loads(path.read_text())
            found.append(
                Note(
                    rank=int(raw["rank"]),
                    code=int(raw["code"]),
                    step=None if raw.get("step") is None else int(raw["step"]),
                    time=float(raw.get("time") or 0),
                    error=raw.get("error"),
                    traceback=raw.get("traceback"),
                    problems=tuple(raw.get("problems") or ()),
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return tuple(found)


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has killed for memory in this container, as far as it says."""
    for path in _counters(root):
        try:
            counters = dict(line.split() for line in path.read_text().splitlines())
            return int(counters["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return 0


def _counters(root: Path) -> Iterator[Path]:
    """Where the kernel counts them: in this process's own group; in a container that group is the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if not controllers:
            yield root / f"sys/fs/cgroup{group}/memory.events"
        elif controllers == "memory":
            yield root / f"sys/fs/cgroup/memory{group}/memory.oom_control"
    yield root / "sys/fs/cgroup/memory.events"
    yield root / "sys/fs/cgroup/memory/memory.oom_control"
