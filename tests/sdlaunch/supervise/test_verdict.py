"""One verdict from all evidence, by the first rule that applies."""

import re

import pytest

from sdjob.problems import Problem, bad_output
from sdjob.protocol import ExitNote, Heartbeat, OutputLine
from sdlaunch.supervise.hang import Hang
from sdlaunch.supervise.verdict import Ending, advised, judge, refused


def note(rank=0, code=70, time=1.0):
    return ExitNote(rank, code, step=3, time=time, error="E")


def ending(**more):
    lines = (re.fullmatch(r"(?:\[rank (\d+)\] )?(.*)", line, re.DOTALL) for line in more.pop("log_tail", ()))
    tail = tuple(OutputLine(int(line[1]) if line[1] else None, line[2]) for line in lines)
    return Ending(**{"returncode": 1, "notes": (), "log_tail": tail} | more)


BAD_INPUT = ExitNote(0, 66, problems=(Problem(66, "a", "b", "c"),))
LOADER = ExitNote(0, 70, error="RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')")
FULL = bad_output("OUTPUT_DIR", "/output is gone", "Look for it.")
KILLED = (
    "Root Cause (first observed failure):",
    "  rank      : 1 (local_rank: 1)",
    "  exitcode  : -9 (pid: 5)",
)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (ending(returncode=0), 0),
        (ending(), 70),
        (ending(notes=(note(code=66),)), 66),
        (ending(notes=(note(code=70, time=2), note(1, code=71, time=1))), 71),
        (ending(notes=(note(code=75), note(1, code=70))), 70),
        (ending(returncode=0, notes=(note(code=75),)), 75),
        (ending(returncode=0, notes=(note(code=64),)), 64),
        # The kernel's count takes precedence over what the peers of the victim say, not over a known cause.
        (ending(oom_kills=1, log_tail=KILLED), 71),
        (ending(oom_kills=1, log_tail=KILLED, notes=(note(code=70),)), 71),
        (ending(oom_kills=1, log_tail=KILLED, notes=(note(code=66),)), 66),
        (ending(oom_kills=1, returncode=-9, notes=(note(code=75),)), 71),  # torchrun was killed
        (ending(oom_kills=1, notes=(LOADER,)), 71),
        (
            ending(
                oom_kills=1, log_tail=("x", "RuntimeError: DataLoader worker (pid(s) 7) exited unexpectedly")
            ),
            71,
        ),
        (ending(oom_kills=1, log_tail=("x", "y")), 70),
        # It may have been a process of another job in this container.
        (ending(oom_kills=1), 70),
        (ending(oom_kills=1, notes=(note(code=70),)), 70),
        (ending(oom_kills=1, notes=(note(code=75),)), 75),
        (ending(oom_kills=1, stopped_by=15, returncode=-15), 75),
        (ending(oom_kills=1, stopped_by=15, returncode=-9, forced_at=5.0), 75),  # the launcher did it
        # Killed by an external signal: peers fail of its absence, or think they were asked to stop.
        (ending(log_tail=KILLED), 70),
        (ending(log_tail=KILLED, notes=(note(code=75),)), 70),
        # Stopped by an external signal.
        (ending(returncode=0, stopped_by=15), 0),
        (ending(stopped_by=15), 75),
        (ending(stopped_by=15, forced_at=5.0, notes=(note(time=6),)), 75),
        (ending(stopped_by=15, forced_at=5.0, notes=(note(time=4),)), 70),
        (ending(stopped_by=15, forced_at=5.0, log_tail=KILLED), 75),
        # torchrun was: its ranks may save, or are still starting.
        (ending(returncode=-9, notes=(note(code=75),)), 75),
        (ending(returncode=-9, notes=(note(code=70),)), 70),
        (ending(returncode=-15), 75),
        (ending(log_tail=("…api.SignalException: Process 7 got signal: 15",)), 75),
        # The output folder fails; a result that is gone is no result.
        (ending(output=FULL), 73),
        (ending(output=FULL, returncode=0), 73),
        (ending(output=FULL, notes=(note(code=70),)), 73),
        (ending(output=FULL, notes=(BAD_INPUT,)), 66),
        (ending(output=FULL, output_is_gone=True, notes=(BAD_INPUT,)), 73),  # a cache was below it
    ],
)
def test_the_code(end, code):
    assert judge(end).code == code


def test_the_rank_that_a_signal_ended_explains_the_failures_of_the_same_poll():
    """torchrun looks every 0.1 s: the peer that lost its connection may come first in its table."""
    other = ("Failures:", "[0]:", *KILLED[1:])
    first = (KILLED[0], "[1]:", "  rank      : 0 (local_rank: 0)", "  exitcode  : 1 (pid: 6)")
    verdict = judge(ending(log_tail=(*other, *first), notes=(note(rank=0),)))
    assert (verdict.failure_class, verdict.root_rank) == ("killed from outside", 1)
    before = ("  rank      : 2 (local_rank: 2)", "  exitcode  : -9 (pid: 4)")
    assert judge(ending(log_tail=(*before, "Failures:", *first))).root_rank == 0


@pytest.mark.parametrize(
    ("status", "root", "kind"),
    [
        (-9, 1, "killed from outside"),
        (-11, 1, "crashed"),
        (-7, 1, "crashed"),
        (-15, 0, "bug or lost peer"),
        (1, 0, "bug or lost peer"),
    ],
)
def test_a_rank_that_a_signal_ended_is_the_cause_of_what_its_peers_say(status, root, kind):
    table = (*KILLED[:2], f"  exitcode  : {status} (pid: 5)")
    verdict = judge(ending(log_tail=table, notes=(note(0, code=70),)))
    assert (verdict.code, verdict.root_rank, verdict.failure_class) == (70, root, kind)


def test_the_line_of_a_crash_without_memory_goes_before_its_signal():
    tail = (
        "terminate called after throwing 'c10::OutOfMemoryError'",
        *KILLED[:2],
        "  exitcode  : -6 (pid: 5)",
    )
    assert judge(ending(log_tail=tail, notes=(note(0),))).code == 71


def test_a_host_without_memory_names_the_victim_and_its_last_step():
    beats = (Heartbeat(1, "step", 41), Heartbeat(2, "step", 40), Heartbeat(3, "start"))
    verdict = judge(ending(oom_kills=2, log_tail=KILLED, heartbeats=beats))
    assert (verdict.root_rank, verdict.step, verdict.failure_class) == (1, 41, "out of memory")
    assert "2 processes" in verdict.evidence[0]


def test_a_device_without_memory_is_told_what_would_fit():
    problem = Problem(71, "memory", "the device has too little", "Lower something.")
    verdict = judge(ending(notes=(ExitNote(1, 71, 3, problems=(problem,)),)))
    advice = advised(verdict, ["gradient_checkpointing=1", "lora_rank=16"])
    assert advice.remedy == "Settings that need clearly less: gradient_checkpointing=1; lora_rank=16."
    assert [each.remedy for each in advice.problems] == [advice.remedy]
    assert advised(verdict, []) == verdict
    bug = judge(ending(notes=(note(code=70),)))
    assert advised(bug, ["lora_rank=16"]) == bug


@pytest.mark.parametrize(("noted", "step"), [(None, 41), (7, 7)])
def test_the_step_of_a_failure_is_that_of_its_note_or_else_of_the_last_heartbeat(noted, step):
    verdict = judge(
        ending(notes=(ExitNote(0, 70, noted, error="E"),), heartbeats=(Heartbeat(1, "step", 41),))
    )
    assert verdict.step == step


def test_a_crash_that_a_restart_repaired_is_not_the_verdict_but_a_problem_is():
    crash, problem = ExitNote(0, 70), Problem(70, "loss", "is nan", "Lower lr.")
    assert judge(ending(returncode=0, notes=(crash,))).code == 0
    assert (
        judge(ending(returncode=0, notes=(ExitNote(0, 70, problems=(problem,)),))).failure_class == "diverged"
    )


@pytest.mark.parametrize(
    ("log", "evidence"),
    [
        (("a", "", "b\t", "c", "d"), ("torchrun ended with exit status 1", "b", "c", "d")),
        (
            (*KILLED[:2], "  exitcode  : 3 (pid: 5)"),
            ("torchrun ended with exit status 1", "rank 1 failed first, with exit status 3"),
        ),
    ],
)
def test_without_any_word_the_log_and_the_exit_status_are_the_evidence(log, evidence):
    assert judge(ending(log_tail=log)).evidence == evidence


def test_a_hang_goes_before_everything_and_names_the_stages():
    hang = Hang(61.4, {0: "x", 1: "y"})
    beats = (Heartbeat(1, "step", 41), Heartbeat(2, "validation loss", 40))
    verdict = judge(ending(hang=hang, heartbeats=beats, notes=(note(code=66),), oom_kills=1))
    assert (verdict.code, verdict.failure_class, verdict.step) == (70, "hang", 41)
    assert (
        verdict.evidence[0] == "no progress on any rank for 61 s (hang_timeout); last: step, validation loss"
    )


@pytest.mark.parametrize(
    ("step", "told", "words"), [(0, None, "ended before the first step"), (5, 5, "saved and ended")]
)
def test_a_stop_tells_whether_anything_was_saved(step, told, words):
    verdict = judge(ending(returncode=0, notes=(ExitNote(0, 75, step),)))
    assert (verdict.code, verdict.step, verdict.evidence) == (75, told, (f"the workers {words}",))


def table(status, rank=1):
    """torchrun's table of failures."""
    return (KILLED[0], f"  rank      : {rank} (local_rank: 1)", f"  exitcode  : {status} (pid: 5)")


@pytest.mark.parametrize(
    ("end", "rank", "evidence", "remedy"),
    [
        (
            ending(log_tail=table(-9)),
            1,
            "rank 1 was killed by SIGKILL, and not by the launcher",
            "memory of the host",
        ),
        (ending(log_tail=table(-7)), 1, "rank 1 was killed by SIGBUS, and not by the launcher", "--shm-size"),
        (
            ending(log_tail=table(-11)),
            1,
            "rank 1 was killed by SIGSEGV, and not by the launcher",
            "log of that rank",
        ),
        (
            ending(log_tail=table(-40)),
            1,
            "rank 1 was killed by signal 40, and not by the launcher",
            "log of that rank",
        ),
        (
            ending(oom_kills=2, log_tail=table(-9, 3)),
            3,
            "the kernel killed 2 processes for memory (memory.events: oom_kill)",
            "more memory",
        ),
        (
            ending(log_tail=("x", " No space left on device\n", *table(1, 2))),
            2,
            "No space left on device",
            "Free some",
        ),
        (ending(notes=(note(2),)), 2, "E", "Read the log of that rank"),
        (ending(returncode=0), None, "all processes ended with 0", ""),
        (
            ending(stopped_by=15),
            None,
            "the workers were ended before they had saved",
            "Start the same command",
        ),
        (ending(notes=(note(code=75),)), None, "the workers saved and ended", "Start the same command"),
    ],
)
def test_the_rank_the_evidence_and_the_remedy(end, rank, evidence, remedy):
    verdict = judge(end)
    assert (verdict.root_rank, verdict.evidence) == (rank, (evidence,))
    assert remedy in verdict.remedy and bool(remedy) == bool(verdict.remedy)


def test_a_rank_that_was_ended_while_it_started_explains_the_peer_that_torchrun_killed():
    other = ("Failures:", "[1]:", *KILLED[1:])
    first = (KILLED[0], "[0]:", "  rank      : 0 (local_rank: 0)", "  exitcode  : -15 (pid: 6)")
    assert judge(ending(log_tail=(*other, *first))).code == 75


def test_torchrun_was_killed():
    verdict = judge(ending(returncode=-9, notes=(note(code=70),)))
    assert (verdict.failure_class, verdict.root_rank) == ("killed from outside", None)
    assert verdict.evidence == ("torchrun was killed by SIGKILL, and not by the launcher",)


def test_a_rank_that_could_not_leave_a_note_of_a_full_disk():
    said = ("[rank 1] OUTPUT_DIR: cannot be written", "[rank 1]     → Free some space.")
    verdict = judge(ending(log_tail=("[rank 0] other", *said, *table(73))))
    assert (verdict.code, verdict.root_rank, verdict.evidence) == (73, 1, said)


@pytest.mark.parametrize(
    ("returncode", "status", "words"),
    [
        (1, 0, ("exit status 1", "exit status 0")),
        (-9, 3, ("SIGKILL", "exit status 3")),
        (-40, 3, ("signal 40", "exit status 3")),
    ],
)
def test_an_exit_status_in_words(returncode, status, words):
    verdict = judge(ending(returncode=returncode, log_tail=table(status)))
    assert verdict.evidence == (f"torchrun ended with {words[0]}", f"rank 1 failed first, with {words[1]}")
    assert (verdict.code, verdict.root_rank) == (70, 1)
    assert "log of that rank" in verdict.remedy


@pytest.mark.parametrize(
    ("subject", "name"),
    [("loss", "diverged"), ("weights", "diverged"), ("x", "training failed"), (None, "bug or lost peer")],
)
def test_the_class_of_a_failed_training_follows_from_its_problems(subject, name):
    problems = (Problem(70, subject, "is nan", "Lower lr."),) if subject else ()
    verdict = judge(ending(notes=(ExitNote(1, 70, 3, 2.5, problems, traceback="Traceback"),)))
    assert (verdict.failure_class, verdict.problems, verdict.traceback) == (name, problems, "Traceback")
    assert verdict.evidence == ((f"{subject}: is nan",) if subject else ())
    assert verdict.remedy.startswith("Lower lr." if subject else "Read the log")
    assert (verdict.root_rank, verdict.step, verdict.time) == (1, 3, 2.5)
    assert judge(ending(notes=(note(),))).traceback is None


def test_a_stop_has_the_step_and_the_problems_of_its_note():
    problem = Problem(75, "stop", "asked", "Start again.")
    end = ending(notes=(ExitNote(0, 75, 5, problems=(problem,)),), heartbeats=(Heartbeat(1, "step", 7),))
    assert (judge(end).step, judge(end).problems) == (5, (problem,))


def test_a_hang_names_the_only_busy_rank_and_keeps_the_stacks():
    waiting, busy = 'File "torch/distributed/x.py", line 1 in wait', 'File "a/b.py", line 7 in read'
    hang = Hang(61.4, {1: waiting, 0: busy})
    verdict = judge(ending(hang=hang))
    assert verdict.evidence == (
        "no progress on any rank for 61 s (hang_timeout)",
        "rank 0: read (b.py:7)",
        "rank 1: wait (x.py:1)",
    )
    assert (verdict.root_rank, verdict.traceback) == (0, hang.text())
    assert "hang_timeout" in verdict.remedy
    assert judge(ending(hang=Hang(61.4, {}))).traceback is None


def test_a_refused_job_is_judged_by_its_most_important_problems():
    setting, image = Problem(64, "lr", "is x", "Set it."), Problem(66, "a.png", "is empty", "Replace it.")
    other = Problem(64, "plugin", "is y", "Set it too.")
    verdict = refused([image, other, setting])
    assert (verdict.code, verdict.evidence) == (64, ("lr: is x", "plugin: is y"))
    assert (verdict.remedy, verdict.problems) == ("Set it.", (setting, other, image))


def test_a_verdict_as_it_is_written_to_failure_json():
    problem = Problem(66, "a.png", "is empty", "Replace it.")
    verdict = judge(ending(notes=(ExitNote(1, 66, 3, 2.5, (problem,), traceback="T"),)))
    assert verdict.failed
    assert verdict.to_dict() == {
        "class": "bad input",
        "code": 66,
        "root_rank": 1,
        "step": 3,
        "time": "1970-01-01T00:00:02.500+00:00",
        "evidence": ["a.png: is empty"],
        "remedy": "Replace it.",
        "problems": [{"subject": "a.png", "found": "is empty", "remedy": "Replace it.", "code": 66}],
        "traceback": "T",
    }
    assert [judge(end).failed for end in (ending(returncode=0), ending(stopped_by=15))] == [False, False]


def test_a_lost_connection_tells_where_to_look():
    lost = ExitNote(0, 70, 3, error="RuntimeError('Connection closed by peer [10.0.0.2]:1')")
    verdict = judge(ending(notes=(lost,)))
    assert (verdict.code, verdict.failure_class) == (70, "bug or lost peer")
    assert "NCCL_SOCKET_IFNAME" in verdict.remedy


@pytest.mark.parametrize(
    ("line", "on_host"),
    [("CUDA error: out of memory", False), ("DefaultCPUAllocator: can't allocate memory", True)],
)
def test_memory_of_host_and_device_are_told_apart(line, on_host):
    verdict = judge(ending(log_tail=(line,)))
    assert (verdict.code, verdict.on_host) == (71, on_host)
    subject = "host memory" if on_host else "device memory"
    noted = judge(ending(notes=(ExitNote(0, 71, problems=(Problem(71, subject, "x", "y"),)),)))
    assert noted.on_host == on_host
    assert judge(ending(oom_kills=1, log_tail=KILLED)).on_host


@pytest.mark.parametrize(("rank", "kind"), [(0, "crashed"), (1, "training failed")])
def test_a_rank_that_crashed_is_not_explained_by_what_another_says_of_it(rank, kind):
    line = f"[rank {rank}] RuntimeError: Connection closed by peer [10.0.0.2]:1"
    verdict = judge(ending(log_tail=(line, *KILLED[:2], "  exitcode  : -6 (pid: 5)")))
    assert (verdict.code, verdict.root_rank, verdict.failure_class) == (70, 1, kind)


# --- several nodes -----------------------------------------------------------------------------------

CAUSE = {
    "node": 1,
    "code": 66,
    "class": "bad input",
    "evidence": ["row 3: no image"],
    "remedy": "Take it out.",
}


def test_the_failure_of_another_node_decides():
    lost = ExitNote(0, 70, 3, error="connection closed by peer")
    verdict = judge(ending(notes=(lost,), cause=CAUSE))
    assert (verdict.code, verdict.failure_class, verdict.remedy) == (66, "bad input", "Take it out.")
    assert verdict.evidence == ("node 1 failed, and this node with it: row 3: no image",)


def test_a_cause_on_this_node_takes_precedence():
    own = ExitNote(0, 73, 3, problems=(Problem(73, "OUTPUT_DIR", "full", "Free some space."),))
    assert judge(ending(notes=(own,), cause=CAUSE)).code == 73
    assert judge(ending(returncode=0, cause=CAUSE)).code == 0


def test_nodes_that_did_not_come():
    log = ("torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError",)
    verdict = judge(ending(log_tail=log, missing="node 1 of 2"))
    assert (verdict.code, verdict.evidence) == (69, ("nodes: no rendezvous with node 1 of 2",))
    assert "rendezvous_timeout" in verdict.remedy


def test_a_node_that_left_while_the_nodes_met():
    log = ("torch.distributed.elastic.rendezvous.api.RendezvousClosedError",)
    assert judge(ending(log_tail=log, missing="node 1 of 2")).code == 75


def test_a_lost_connection_to_node_0():
    verdict = judge(ending(log_tail=("The connection to the C10d store has failed. See inner exception.",)))
    assert verdict.code == 70 and "all ranks and nodes" in verdict.remedy
