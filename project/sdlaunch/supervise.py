"""Runs a plan: logs, signals, the two-phase stop, and the exit code that follows from the evidence."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdjob.output import OutputLayout
from sdjob.problem import ExitCode, Problem, output_problem
from sdlaunch import command, evidence, hang, processes, records
from sdlaunch.command import LaunchPlan
from sdlaunch.evidence import Ending, Verdict
from sdlaunch.hang import Hang
from sdlaunch.plan import JobPlan
from sdlaunch.stream import Stream, lines_of

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LAST_GRACE = 3.0  # seconds between SIGTERM and SIGKILL, when the grace time has passed


@dataclass
class Stop:
    """The state of a stop from outside; a signal handler only appends to `signals`."""

    signals: list[int] = field(default_factory=list)
    asked_at: float | None = None
    forced_at: float | None = None
    insisted: int | None = None  # the second signal, if it came before the end


@dataclass
class Watch:
    """Looks for signs of life of the ranks; `hang` is what was found when there were none for too long."""

    notes: Path
    timeout: float  # seconds; 0: never
    started: float = field(default_factory=time.time)
    looked: float = 0.0
    hang: Hang | None = None

    def hangs(self) -> bool:
        """Whether nothing goes forward; looks seldom, since the notes may lie on slow storage."""
        now = time.time()
        if self.timeout and now - self.looked >= min(5.0, self.timeout / 10):
            self.looked = now
            silent = now - hang.last_progress(self.notes, self.started)
            if silent > self.timeout:
                self.hang = hang.examine(self.notes, silent)
        return self.hang is not None


def run(plan: JobPlan, environ: Mapping[str, str]) -> int:
    """Trains, and returns the exit code of the job."""
    assert plan.launch is not None, "a plan with a refused setting has no command"
    layout, node = OutputLayout(plan.output), plan.cluster.node_rank
    notes, stop_file = command.notes_dir(layout, node), command.stop_file(layout, node)
    try:
        if node == 0:
            records.write_all(plan, layout, environ)
        _fresh(notes, stop_file)
        layout.logs.mkdir(parents=True, exist_ok=True)
        log = (layout.logs / f"node-{node}.log").open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        return _cannot_write(layout, error)
    with log:
        stop, stream = _note_signals(), Stream(log, sys.stdout, plan.secrets)
        kills_before = evidence.oom_kills()
        watch = Watch(notes, float(plan.settings["hang_timeout"].value))
        returncode = _supervised(plan.launch, environ, stream, stop, stop_file, plan.stop_grace, watch)
        if stop.insisted:
            stream.say(f"stopped at once by a second signal ({_name(stop.insisted)})")
            return 128 + stop.insisted
        kills = evidence.oom_kills() - kills_before
        verdict = evidence.judge(_ending(returncode, notes, stream, kills, stop, watch.hang))
        with contextlib.suppress(OSError):  # a full disk must not hide the verdict
            if watch.hang:
                (layout.logs / f"stacks-of-node-{node}.txt").write_text(watch.hang.text(), encoding="utf-8")
            records.write_failure(layout, verdict, plan.secrets)
            stop_file.unlink(missing_ok=True)
            shutil.rmtree(notes)  # what they say is in failure.json
        _say_verdict(verdict, layout, log.name, stream)
    return int(verdict.code)


def _ending(
    returncode: int, notes: Path, stream: Stream, oom_kills: int, stop: Stop, hung: Hang | None
) -> Ending:
    return Ending(
        returncode,
        evidence.read_notes(notes),
        tuple(stream.tail),
        oom_kills,
        stop.signals[0] if stop.signals else None,
        stop.forced_at,
        hung,
    )


def _fresh(notes: Path, stop_file: Path) -> None:
    """Word that an earlier run left must not be taken for this one's."""
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    stop_file.unlink(missing_ok=True)


def _note_signals() -> Stop:
    """From here on signals are only noted: the verdict of a job that has ended stands."""
    stop = Stop()
    for signum in _SIGNALS:
        signal.signal(signum, lambda number, _: stop.signals.append(number))
    return stop


def _supervised(
    launch: LaunchPlan,
    environ: Mapping[str, str],
    stream: Stream,
    stop: Stop,
    stop_file: Path,
    grace: float,
    watch: Watch,
) -> int:
    """Starts the command, waits for its end, and passes on what comes from both sides."""
    processes.adopt_orphans()
    with subprocess.Popen(
        launch.argv,
        env=launch.environment(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which stops the job in order
    ) as process:
        assert process.stdout is not None
        pump = threading.Thread(target=stream.pump, args=(lines_of(process.stdout),), daemon=True)
        pump.start()
        while process.poll() is None and not stop.insisted and not watch.hangs():
            _advance(stop, process, stop_file, grace, stream)
            processes.reap_orphans(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        processes.kill_all(process.pid)  # after an end of its own: workers that torchrun did not take along
        process.wait()
        pump.join(timeout=10)
    return process.returncode


def _advance(
    stop: Stop, process: subprocess.Popen[bytes], stop_file: Path, grace: float, stream: Stream
) -> None:
    """One look at the stop: ask at the first signal, insist after the grace time or at the second, then kill."""
    now = time.time()
    if len(stop.signals) > 1:
        stop.insisted = stop.signals[1]
    elif stop.signals and stop.asked_at is None:
        stop.asked_at = now
        stream.say(
            f"{_name(stop.signals[0])}: saving and stopping, within {grace:g} s; again to stop at once"
        )
        with contextlib.suppress(OSError):  # a full disk: the processes are signalled after the grace time
            stop_file.touch()
    elif stop.asked_at is not None and stop.forced_at is None and now >= stop.asked_at + grace:
        stop.forced_at = now
        stream.say(f"not stopped within {grace:g} s: ending the processes")
        stream.quiet = True  # what the workers say of being ended helps nobody
        process.terminate()
    elif stop.forced_at is not None and now >= stop.forced_at + _LAST_GRACE:
        processes.kill_all(process.pid)


def _say_verdict(verdict: Verdict, layout: OutputLayout, log: str, stream: Stream) -> None:
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
    problem: Problem = output_problem(
        "OUTPUT_DIR",
        f"{error.filename or layout.root}: {error.strerror}",
        "Mount a writable volume with free space there, or set OUTPUT_DIR to another folder.",
    )
    print(problem, file=sys.stderr)
    return problem.code


def _name(signum: int) -> str:
    return signal.Signals(signum).name
