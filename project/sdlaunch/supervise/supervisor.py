"""Runs a plan: logs, signals, the two-phase stop, and the exit code that follows from the verdicts."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from sdjob import protocol
from sdjob.output.layout import OutputLayout
from sdjob.problems import ExitCode, JobError, Problem, bad_output
from sdlaunch import command
from sdlaunch.display import run_records
from sdlaunch.display import text as display
from sdlaunch.plan import JobPlan
from sdlaunch.supervise import failure_report, hang, lock, processes
from sdlaunch.supervise import verdict as verdicts
from sdlaunch.supervise.hang import Hang
from sdlaunch.supervise.node_log import NodeLog
from sdlaunch.supervise.terminal import Terminal
from sdlaunch.supervise.verdict import Ending, Verdict
from sdlaunch.supervise.worker_output import Stream, lines_of

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LAST_GRACE = 3.0  # seconds between SIGTERM and SIGKILL, when the grace time has passed


@dataclass
class Stop:
    """The state of a stop from outside; a signal handler only appends to `signals` and `times`."""

    signals: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # of the signals, by a clock that only goes forward
    asked_at: float | None = None
    forced_at: float | None = None
    insisted: int | None = None  # the signal of a second request, if it came before the end

    def noted(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.times.append(time.monotonic())
        self.signals.append(number)

    def second(self) -> int | None:
        """The first signal that does not belong to the first request."""
        for number, at in zip(self.signals, self.times, strict=False):  # one may come in between
            if at - self.times[0] > protocol.ONE_REQUEST:
                return number
        return None


@dataclass
class Watch:
    """Looks for signs of life of the ranks; `hang` is what was found when there were none for too long."""

    notes: Path
    timeout: float  # seconds; 0: never
    started: float = field(default_factory=time.time)
    looked: float = field(default_factory=time.time)
    hang: Hang | None = None

    def hangs(self) -> bool:
        """Whether nothing goes forward; looks seldom, since the notes may lie on slow storage."""
        now, interval = time.time(), min(5.0, self.timeout / 10)
        if not 0 <= now - self.looked <= interval + max(1.0, self.timeout / 4):
            # The launcher has been paused itself, and its ranks with it, or the clock was set: counted again.
            self.started = self.looked = now
        elif self.timeout and now - self.looked >= interval:
            self.looked = now
            silent = now - hang.last_progress(self.notes, self.started)
            if silent > self.timeout:
                self.hang = hang.examine(self.notes, silent)
        return self.hang is not None


def run(plan: JobPlan, environ: Mapping[str, str]) -> int:
    """Trains, and returns the exit code of the job."""
    layout = OutputLayout(plan.output)
    with contextlib.ExitStack() as stack:
        try:
            lock_descriptor = stack.enter_context(lock.held(layout, plan.cluster, _hint))
            log = stack.enter_context(_prepared(plan, layout, environ))
        except JobError as error:
            _hint(str(error))
            return error.code
        except OSError as error:
            return _cannot_write(layout, error)
        terminal = Terminal(sys.stdout)
        stack.callback(terminal.close)
        return _watched(plan, environ, layout, Stream(log, terminal, plan.secrets), lock_descriptor)


def _prepared(plan: JobPlan, layout: OutputLayout, environ: Mapping[str, str]) -> NodeLog:
    """Puts the output folder in order for this run; gives the log of this node. Raises OSError."""
    node = plan.cluster.node_rank
    failure_report.clear(layout, plan.cluster)
    if node == 0:
        run_records.write_all(plan, layout, environ)
    _fresh(command.notes_dir(layout, node), command.stop_file(layout, node))
    layout.logs.mkdir(parents=True, exist_ok=True)
    log = NodeLog(_log(layout, node))
    log.begin(f"start of node {node} of {plan.cluster.nodes}", display.start(plan))
    return log


def _watched(
    plan: JobPlan, environ: Mapping[str, str], layout: OutputLayout, stream: Stream, lock_descriptor: int
) -> int:
    """The run itself, up to its verdict."""
    assert plan.launch is not None, "a plan with a refused setting has no command"
    node = plan.cluster.node_rank
    notes, stop_file = command.notes_dir(layout, node), command.stop_file(layout, node)
    stop, kills_before = _note_signals(), verdicts.oom_kills()
    watch = Watch(notes, float(plan.settings["hang_timeout"].value))
    job = _Job(
        plan.launch.argv, plan.launch.environment(environ), stop_file, plan.stop_grace, lock_descriptor
    )
    returncode = _supervised(job, stream, stop, watch)
    if stop.insisted:
        stream.say(f"stopped at once by a second signal ({_name(stop.insisted)})")
        return 128 + stop.insisted
    kills = verdicts.oom_kills() - kills_before
    verdict = verdicts.judge(_ending(returncode, notes, stream, kills, stop, watch.hang))
    if verdict.code == ExitCode.OUT_OF_MEMORY and not kills:  # of the device, not of the host
        verdict = verdicts.advised(verdict, plan.lighter())
    with contextlib.suppress(OSError):  # a full disk must not hide the verdict
        if watch.hang:
            (layout.logs / f"stacks-of-node-{node}.txt").write_text(watch.hang.text(), encoding="utf-8")
        failure_report.record(layout, plan.cluster, verdict, plan.secrets)
        stop_file.unlink(missing_ok=True)
        shutil.rmtree(notes)  # what they say is in failure.json
    _say_verdict(verdict, layout, _log(layout, node), stream)
    return int(verdict.code)


def _log(layout: OutputLayout, node: int) -> Path:
    return layout.logs / f"node-{node}.log"


def _hint(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _ending(
    returncode: int, notes: Path, stream: Stream, oom_kills: int, stop: Stop, hung: Hang | None
) -> Ending:
    return Ending(
        returncode,
        verdicts.read_notes(notes),
        tuple(stream.tail),
        oom_kills,
        stop.signals[0] if stop.signals else None,
        stop.forced_at,
        hung,
    )


def _fresh(notes: Path, stop_file: Path) -> None:
    """Word that an earlier run left must not be taken for this one's."""
    shutil.rmtree(notes, ignore_errors=True)  # on a network mount an empty folder may stay
    notes.mkdir(parents=True, exist_ok=True)
    for path in notes.glob("[!.]*"):
        path.unlink()
    stop_file.unlink(missing_ok=True)


def _note_signals() -> Stop:
    """From here on signals are only noted: the verdict of a job that has ended stands."""
    stop = Stop()
    for signum in _SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup
            signal.signal(signum, stop.noted)
    return stop


@dataclass(frozen=True)
class _Job:
    """What is started, and how it is stopped."""

    argv: Sequence[str]
    env: Mapping[str, str]
    stop_file: Path
    grace: float  # seconds
    lock_descriptor: int


def _supervised(job: _Job, stream: Stream, stop: Stop, watch: Watch) -> int:
    """Starts the command, waits for its end, and passes on what comes from both sides."""
    if stop.signals:
        return -stop.signals[0]
    processes.adopt_orphans()
    with subprocess.Popen(
        job.argv,
        env=job.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which stops the job in order
        pass_fds=(job.lock_descriptor,),  # the folder is in use as long as either lives
        preexec_fn=processes.end_with_parent(),
    ) as process:
        assert process.stdout is not None
        pump = threading.Thread(target=stream.pump, args=(lines_of(process.stdout),), daemon=True)
        pump.start()
        while process.poll() is None and not stop.insisted and not watch.hangs():
            _advance(stop, process, job, stream)
            processes.reap_orphans(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        processes.kill_all(process.pid)  # after an end of its own: workers that torchrun did not take along
        process.wait()
        pump.join(timeout=10)
    return process.returncode


def _advance(stop: Stop, process: subprocess.Popen[bytes], job: _Job, stream: Stream) -> None:
    """One look at the stop: ask at the first signal, insist after the grace time or at a second request, then kill."""
    now = time.time()
    if second := stop.second():
        stop.insisted = second
    elif stop.signals and stop.asked_at is None:
        stop.asked_at = now
        with contextlib.suppress(OSError):  # a full disk: the processes are signalled after the grace time
            job.stop_file.touch()
        stream.say(
            f"{_name(stop.signals[0])}: saving and stopping, within {job.grace:g} s; "
            f"again, after {protocol.ONE_REQUEST:g} s, to stop at once"
        )
    elif stop.asked_at is not None and stop.forced_at is None and now >= stop.asked_at + job.grace:
        stop.forced_at = now
        stream.say(f"not stopped within {job.grace:g} s: ending the processes")
        stream.quiet = True  # what the workers say of being ended helps nobody
        process.terminate()
    elif stop.forced_at is not None and now >= stop.forced_at + _LAST_GRACE:
        processes.kill_all(process.pid)


def _say_verdict(verdict: Verdict, layout: OutputLayout, log: Path, stream: Stream) -> None:
    """The last words on the terminal."""
    if verdict.code == ExitCode.FINISHED:
        return
    rank = "" if verdict.root_rank is None else f", rank {verdict.root_rank}"
    step = "" if verdict.step is None else f", step {verdict.step}"
    stream.say(f"{verdict.kind} (exit code {int(verdict.code)}{rank}{step})")
    for problem in verdict.problems:
        stream.say(f"  {problem.get('subject')}: {problem.get('found')}\n      → {problem.get('remedy')}")
    if not verdict.problems:
        stream.say("\n".join(f"  {line}" for line in verdict.evidence))
        stream.say(f"      → {verdict.remedy}")
    if verdict.failed:
        stream.say(f"  details: {layout.failure}, {log}")


def _cannot_write(layout: OutputLayout, error: OSError) -> int:
    problem: Problem = bad_output(
        "OUTPUT_DIR",
        f"{error.filename or layout.root}: {error.strerror}",
        "Mount a writable volume with free space there, or set OUTPUT_DIR to another folder.",
    )
    _hint(str(problem))
    return problem.code


def _name(signum: int) -> str:
    return signal.Signals(signum).name
