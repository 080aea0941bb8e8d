"""One verdict from all evidence, by the first rule that applies."""

import pytest

from sdjob.problems import Problem
from sdjob.protocol import ExitNote, Heartbeat
from sdlaunch.supervise.hang import Hang
from sdlaunch.supervise.verdict import Ending, advised, judge


def note(rank=0, code=70, time=1.0):
    return ExitNote(rank, code, step=3, time=time, error="E")


def ending(**more):
    return Ending(**{"returncode": 1, "notes": (), "log_tail": ()} | more)


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
        # The kernel's count goes before what the peers of the victim say, and not before a known cause.
        (ending(oom_kills=1), 71),
        (ending(oom_kills=1, notes=(note(code=70),)), 71),
        (ending(oom_kills=1, notes=(note(code=66),)), 66),
        # Killed from outside: peers fail of its absence, or think they were asked to stop.
        (ending(log_tail=KILLED), 70),
        (ending(log_tail=KILLED, notes=(note(code=75),)), 70),
        # Stopped from outside.
        (ending(returncode=0, stopped_by=15), 0),
        (ending(stopped_by=15), 75),
        (ending(stopped_by=15, forced_at=5.0, notes=(note(time=6),)), 75),
        (ending(stopped_by=15, forced_at=5.0, notes=(note(time=4),)), 70),
        (ending(stopped_by=15, forced_at=5.0, log_tail=KILLED), 75),
    ],
)
def test_the_code(end, code):
    assert judge(end).code == code


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
