"""Runs a plan: logs, signals, the two-phase stop, and the exit code that follows from the verdict."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import indent
from types import FrameType

from sdjob import protocol
from sdjob.exit_codes import ExitCode
from sdjob.output import starts
from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError
from sdjob.protocol import Channel, ExitNote, Heartbeat
from sdjob.writing import touch, write_text
from sdlaunch import limits
from sdlaunch.command import LaunchPlan
from sdlaunch.display import console, run_records
from sdlaunch.display import text as display
from sdlaunch.inputs import temporary_folder
from sdlaunch.plan import JobPlan
from sdlaunch.preflight.output import unwritable
from sdlaunch.publish import publish
from sdlaunch.supervise import failure_report, hang, lock, output_folder, processes, rank_pipes
from sdlaunch.supervise import verdict as verdicts
from sdlaunch.supervise.hang import Watch
from sdlaunch.supervise.live_page import LivePage
from sdlaunch.supervise.lock import Lock
from sdlaunch.supervise.nodes.meeting import Interrupted, Meeting
from sdlaunch.supervise.nodes.peers import Peers
from sdlaunch.supervise.rank_pipes import RankPipes
from sdlaunch.supervise.terminal import bar, last_line
from sdlaunch.supervise.terminal.terminal import Terminal
from sdlaunch.supervise.verdict import Ending, Verdict
from sdlaunch.supervise.worker_output import Stream

_LAST_GRACE = 3.0  # seconds between SIGTERM and SIGKILL, when the grace time is over


@dataclass
class Stop:
    """The state of a stop by external signals; the signal handler only appends to `received`."""

    received: list[tuple[int, float]] = field(default_factory=list)  # signals, and their monotonic times
    asked_at: float | None = None
    forced_at: float | None = None
    forced_time: float | None = None  # Unix time, for messages of other processes
    insisted: bool = False  # by a repeated SIGINT, before the end

    @property
    def signal(self) -> int | None:
        """The first signal."""
        return self.received[0][0] if self.received else None

    def noted(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.received.append((number, time.monotonic()))


@dataclass(frozen=True)
class _Job:
    """A job of one node, with everything that its supervision needs."""

    plan: JobPlan
    layout: OutputLayout
    channel: Channel
    stream: Stream
    terminal: Terminal
    pipes: RankPipes
    lock: Lock
    page: LivePage | None  # on the first node


def run(plan: JobPlan, environ: Mapping[str, str]) -> int:
    """Train, and return the exit code of the job."""
    layout, node = OutputLayout(plan.output), plan.cluster.node_rank
    channel, terminal = Channel.of_node(layout.run, node), Terminal(sys.stdout)
    with contextlib.ExitStack() as stack:
        stack.callback(terminal.close)
        try:
            held = stack.enter_context(lock.held(layout, plan.cluster, _hint))
            private = stack.enter_context(temporary_folder.private(plan.temporary.path, layout.root, node))
            pipes = stack.enter_context(rank_pipes.opened(private, plan.cluster.nproc_per_node))
            _prepare(plan, layout, channel, environ)
            stream = stack.enter_context(Stream(layout, node, terminal, plan.secrets))
        except (JobError, OSError) as error:
            if isinstance(error, OSError):
                error = JobError(unwritable(Path(error.filename or layout.root), error))
            _hint(f"{error}\n{last_line.of_refused(layout, error.problems)}")
            return error.code
        page = stack.enter_context(LivePage(layout, channel)) if node == 0 else None
        stream.note(f"==== start of node {node} of {plan.cluster.nodes} ====\n{display.start(plan)}")
        job = _Job(plan, layout, channel, stream, terminal, pipes, held, page)
        code = _run_to_verdict(job, environ)
        published = _publish(job, environ) if code == ExitCode.FINISHED and node == 0 else code
        result = layout.root if plan.settings["script"].value else layout.checkpoint
        stream.say(last_line.of_ended(layout, code, result))
        return published


def _prepare(plan: JobPlan, layout: OutputLayout, channel: Channel, environ: Mapping[str, str]) -> None:
    """Put the output folder in order for this run. Raises OSError."""
    failure_report.clear(layout, plan.cluster)
    if plan.cluster.node_rank == 0:
        run_records.write_all(plan, layout, environ)
        starts.begin(layout, time.time(), plan.cluster.world_size, Heartbeat.last(channel.notes))
    channel.clear()
    layout.make(layout.logs)


def _run_to_verdict(job: _Job, environ: Mapping[str, str]) -> int:
    """The run up to its verdict."""
    stop, kills_before = _note_signals(), processes.oom_kills()
    limit, world_size = float(job.plan.settings["hang_timeout"].value), job.plan.cluster.world_size
    watch = Watch(job.channel.notes, limit, world_size)
    patience = float(job.plan.settings["rendezvous_timeout"].value)
    peers = Peers(job.layout, job.plan.cluster, job.channel.notes, job.stream.say, patience)
    try:
        returncode = _supervised(job, environ, stop, watch, peers)
    except JobError as error:  # the nodes do not find each other
        return _report(job, verdicts.refused(error.problems), watch)
    except (OSError, RuntimeError) as error:
        if not (problem := limits.problem_of(error)):
            raise
        return _report(job, verdicts.refused([problem]), watch)
    if stop.insisted:
        job.stream.say("stopped at once by a repeated Ctrl-C (SIGINT)")
        return 128 + signal.SIGINT
    notes = ExitNote.read_all(job.channel.notes)
    unexplained = returncode != 0 and not (stop.signal or watch.hang or any(note.problems for note in notes))
    end = Ending(
        returncode,
        notes,
        log_tail=tuple(job.stream.tail),
        heartbeats=tuple(Heartbeat.read_all(job.channel.notes).values()),
        oom_kills=processes.oom_kills() - kills_before,
        stopped_by=stop.signal,
        forced_at=stop.forced_time,
        hang=watch.hang,
        output=output_folder.problem_after(job.lock, job.layout.root, failed=returncode != 0),
        output_is_gone=job.lock.lost.is_set(),
        cause=peers.awaited_cause() if unexplained else None,
        missing=peers.missing() if unexplained and job.plan.cluster.nodes > 1 else "",
    )
    verdict = verdicts.judge(end)
    on_cpu = job.plan.settings["device"].value == "cpu"
    if verdict.code == ExitCode.OUT_OF_MEMORY and not end.oom_kills and (on_cpu or not verdict.on_host):
        verdict = verdicts.advised(verdict, job.plan.lighter())
    return _report(job, verdict, watch)


def _publish(job: _Job, environ: Mapping[str, str]) -> int:
    """Upload the result of a finished run, where the settings say so; returns the exit code of the job."""
    address = job.plan.settings["publish"].value
    if address is None:
        return int(ExitCode.FINISHED)
    upload = publish.upload_of(job.layout.checkpoint, address, "publish")
    return publish.run(upload, {**environ, **job.plan.passed_on}, job.stream.say)


def _report(job: _Job, verdict: Verdict, watch: Watch) -> int:
    """Report how the job ended; returns its exit code."""
    _show(verdict, job, recorded=_record(verdict, watch, job))
    return int(verdict.code)


def _record(verdict: Verdict, watch: Watch, job: _Job) -> bool:
    """Write failure.json and the stacks of a hang, and remove the messages; whether that was possible."""
    if job.lock.lost.is_set():  # the folder may be that of another job
        return False
    try:
        if watch.hang:
            stacks = job.layout.logs / f"stacks-of-node-{job.plan.cluster.node_rank}.txt"
            job.layout.make(stacks.parent)
            write_text(stacks, watch.hang.text(), private=True)
        if job.plan.cluster.node_rank == 0:
            starts.end(job.layout, starts.now(job.layout), finished=verdict.code == ExitCode.FINISHED)
        failure_report.record(job.layout, job.plan.cluster, verdict, job.plan.secrets)
        if job.page:
            job.page.end(verdict.failure_class)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        job.channel.remove()  # failure.json holds what the messages say
    return True


def _hint(text: str) -> None:
    console.show(text, sys.stderr)


def _note_signals() -> Stop:
    """From here on signals are only noted: a job that has ended keeps its verdict."""
    stop = Stop()
    for number in protocol.STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, stop.noted)
    return stop


def _meet(job: _Job, stop: Stop, peers: Peers) -> LaunchPlan | None:
    """The command, once node 0 is found; None: the job is over before. Raises JobError (69)."""

    def is_over() -> bool:
        return stop.signal is not None or peers.job_is_over()

    plan = job.plan
    try:
        route = Meeting(plan, job.stream.say, is_over).reach()
    except Interrupted:
        return None
    if stop.signal:
        return None
    return plan.launch if route == plan.cluster.route else plan.launch_on(replace(plan.cluster, route=route))


def _supervised(job: _Job, environ: Mapping[str, str], stop: Stop, watch: Watch, peers: Peers) -> int:
    """Start the command, wait for its end, and pass on output and requests to stop. Raises JobError (69)."""
    launch = _meet(job, stop, peers)
    if launch is None:
        return -(stop.signal or signal.SIGTERM)
    with _bar(job), _started(job, launch, environ) as process:
        assert process.stdout is not None
        ended = threading.Event()
        lines = job.pipes.lines(process.stdout.fileno(), ended.is_set)
        pump = threading.Thread(target=job.stream.pump, args=(lines,), daemon=True)
        try:
            pump.start()
        except RuntimeError:  # no more threads
            processes.kill_all(process.pid)
            raise
        while process.poll() is None and not (
            stop.insisted or watch.hangs() or job.lock.lost.is_set() or peers.job_is_over(process.pid)
        ):
            _advance_stop(stop, process, job, peers)
            if peers.is_waiting:
                watch.restart()
            processes.reap_orphans(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        if watch.hang and job.plan.cluster.nodes > 1:
            hang.let_others_look()
        if process.returncode and process.returncode < 0 and not stop.forced_at:
            _wait_for_ranks(process.pid, stop, job)
        processes.kill_all(process.pid)  # torchrun may end before its workers do
        process.wait()
        ended.set()
        pump.join(timeout=10)
    job.terminal.keep()  # the bar that a script may have shown
    return process.returncode


def _bar(job: _Job) -> contextlib.AbstractContextManager[None]:
    """The bar of the current stage; instead of lines of progress, and not for a script, which may have its own."""
    is_ours = job.plan.cluster.node_rank == 0 and not job.plan.settings["script"].value
    job.stream.has_bar = is_ours and bar.is_possible(job.terminal)
    return bar.shown(job.channel.notes, job.terminal) if job.stream.has_bar else contextlib.nullcontext()


def _started(job: _Job, launch: LaunchPlan, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Torchrun, in a session of its own. Raises OSError."""
    processes.adopt_orphans()
    return processes.start_torchrun(
        launch.argv,
        env=launch.environment(environ)
        | protocol.launcher_variables(job.pipes.folder)
        | job.plan.temporary.environment(job.pipes.folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which stops the job in order
        pass_fds=(job.lock.descriptor,),  # the folder is in use as long as either lives
    )


def _wait_for_ranks(torchrun: int, stop: Stop, job: _Job) -> None:
    """Ranks whose torchrun was killed are signalled by the kernel: they may save, within the grace time."""
    until = time.monotonic() + job.plan.stop_grace
    while time.monotonic() < until and not protocol.insists(stop.received):
        processes.reap_orphans(torchrun)
        if not [each for each in processes.descendants() if each.pid != torchrun]:
            return
        time.sleep(0.1)


def _advance_stop(stop: Stop, process: subprocess.Popen[bytes], job: _Job, peers: Peers) -> None:
    """The next phase of a stop: ask at the first signal, end after the grace time, kill after that.

    A repeated SIGINT ends the supervision.
    """
    now, grace = time.monotonic(), job.plan.stop_grace
    if protocol.insists(stop.received):
        stop.insisted = True
    elif stop.signal and stop.asked_at is None:
        stop.asked_at = now
        with contextlib.suppress(OSError):  # a full disk: the processes are signalled after the grace time
            touch(job.channel.stop_file)
        again = f"; Ctrl-C again, after {protocol.ONE_REQUEST:g} s, stops at once"
        hint = again if stop.signal == signal.SIGINT else ""
        job.stream.say(f"{signal.Signals(stop.signal).name}: saving and stopping, within {grace:g} s{hint}")
    elif (
        stop.asked_at is not None
        and stop.forced_at is None
        and (peers.is_waiting or now >= stop.asked_at + grace)
    ):
        stop.forced_at, stop.forced_time = now, time.time()
        if not peers.is_waiting:
            job.stream.say(f"not stopped within {grace:g} s: ending the processes")
        job.stream.quiet = True  # what the workers print about being ended does not help
        process.terminate()
    elif stop.forced_at is not None and now >= stop.forced_at + _LAST_GRACE:
        processes.kill_all(process.pid)


def _show(verdict: Verdict, job: _Job, *, recorded: bool) -> None:
    """The last lines on the terminal; also what failure.json would hold, if it could not be written."""
    if verdict.code == ExitCode.FINISHED:
        return
    say = job.stream.say
    rank = "" if verdict.root_rank is None else f", rank {verdict.root_rank}"
    step = "" if verdict.step is None else f", step {verdict.step}"
    say(f"{verdict.failure_class} (exit code {int(verdict.code)}{rank}{step})")
    for problem in verdict.problems:
        say(indent(str(problem), "  "))
    if not verdict.problems:
        say(indent("\n".join((*verdict.evidence, f"    → {verdict.remedy}")), "  "))
    if verdict.failed and not recorded:
        say(f"  {job.layout.failure.name} cannot be written there; it would be:")
        say(failure_report.text_of(job.layout, job.plan.cluster, verdict, job.plan.secrets))
    elif verdict.failed:
        log = failure_report.log_of(job.layout, job.plan.cluster.node_rank, verdict.root_rank)
        say(f"  details: {job.layout.failure}, {log}")
