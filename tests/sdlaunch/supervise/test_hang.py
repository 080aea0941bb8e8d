"""A job without progress ends with the stacks of its ranks; one with progress is left alone."""

import os
import time

import pytest

from sdjob.protocol import Heartbeat
from sdlaunch.supervise import hang
from sdlaunch.supervise.hang import Hang, Watch
from tests.support.launcher import supervised

# Ranks of a job without torch: they announce themselves as the worker does.
RANKS = """
def rank(number, doing):
    lines = [f"import os, sys, time; os.environ['RANK'] = '{number}'", "from sdtrain.runtime import heartbeat",
             "def stuck():", "    time.sleep(60)", "with heartbeat.announced():", *("    " + line for line in doing)]
    return subprocess.Popen([sys.executable, "-c", chr(10).join(lines)], start_new_session=True)
"""
STUCK = (
    "children = [rank(n, ['print(\"[rank 0] in\", flush=True)', 'stuck()']) for n in (0, 1)]; time.sleep(60)"
)


@pytest.fixture
def run(tmp_path, workspace):
    return lambda script, **options: supervised(tmp_path, workspace, RANKS + script, **options)


def test_a_hang_is_70_with_the_stacks_of_all_ranks(run):
    begin = time.monotonic()
    ended = run(STUCK, hang_timeout="2")
    text = ended.end(70)
    assert time.monotonic() - begin < 40
    assert "hang (exit code 70" in text
    assert "rank 1: stuck (<string>:4)" in text
    assert ended.failure["class"] == "hang"
    assert ended.failure["evidence"][0].endswith(" s (hang_timeout); last: start")
    stacks = (ended.output / "logs" / "stacks-of-node-0.txt").read_text()
    assert stacks == ended.failure["traceback"]
    assert stacks.count("in stuck") == 2
    assert not list((ended.output / "run").glob("notes-*"))


def test_a_rank_that_cannot_answer_is_described(run):
    ended = run(
        "one = rank(0, ['print(\"[rank 0] in\", flush=True)', 'os.kill(os.getpid(), 19)']); time.sleep(60)",
        hang_timeout="2",
    )
    ended.end(70)
    assert "rank 0: gave no stacks; it is stopped" in ended.failure["evidence"]


def test_progress_is_no_hang(run):
    steps = "['pulse = heartbeat.Pulse(\"step\")', 'for n in range(30):', '    time.sleep(0.15); pulse()']"
    run(f"sys.exit(rank(0, {steps}).wait())", hang_timeout="3").end(0)


@pytest.fixture
def clock(monkeypatch):
    now = [time.monotonic()]
    monkeypatch.setattr(hang.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("timeout", "hangs"), [(0.0, False), (8.0, True)])
def test_without_a_limit_nothing_is_looked_for(tmp_path, clock, timeout, hangs):
    watch = Watch(tmp_path, timeout, 2)
    for _ in range(100):
        clock[0] += 0.2  # as often as the launcher looks
        watch.hangs()
    assert watch.hangs() == hangs


def test_a_start_that_never_ends_is_a_hang_too(run):
    ended = run("time.sleep(60)", hang_timeout="1")
    ended.end(70)
    assert ended.failure["class"] == "hang"
    assert ended.failure["root_rank"] is None


def test_a_pause_of_everything_is_no_hang(tmp_path, clock):
    watch = Watch(tmp_path, 8.0, 2)

    def hangs_after(seconds: float) -> bool:
        clock[0] += seconds
        return watch.hangs()

    assert not any(hangs_after(1) for _ in range(7))
    assert not hangs_after(100)
    assert [hangs_after(1) for _ in range(9)] == [False] * 8 + [True]
    assert watch.hang and watch.hang.seconds == 9


@pytest.mark.parametrize("set_by", [3600, 0, -3600])
def test_a_clock_that_is_set_neither_makes_nor_hides_a_hang(tmp_path, clock, set_by):
    watch, file_time = Watch(tmp_path, 8.0, 2), 1e9

    def hangs(*, beats: bool) -> bool:
        clock[0] += 1
        if beats:
            Heartbeat(1, "step").write(tmp_path, 0)
            os.utime(tmp_path / "alive-0", (file_time + clock[0],) * 2)
        return watch.hangs()

    assert not any(hangs(beats=True) for _ in range(20))
    file_time += set_by
    assert not any(hangs(beats=True) for _ in range(20))
    assert [hangs(beats=False) for _ in range(9)] == [False] * 8 + [True]


WAITING = (
    'Current thread 0x1 (most recent call first):\n  File "/x/torch/distributed/c10d.py", line 9 in reduce\n'
)
BUSY = (
    'Thread 0x2:\n  File "q.py", line 1 in wait\nCurrent thread 0x1:\n  File "/x/data.py", line 7 in load\n'
)


BACKWARD = (
    "Current thread 0x1 (most recent call first):\n"
    '  File "/x/torch/autograd/graph.py", line 865 in _engine_run_backward\n'
    '  File "/x/torch/_tensor.py", line 648 in backward\n'
)
OPERATOR = (
    'Current thread 0x1:\n  File "/x/torch/_ops.py", line 1243 in __call__\n'
    '  File "/x/torch/distributed/_functional_collectives.py", line 127 in wait_tensor\n'
)
STORAGE = (
    'Current thread 0x1:\n  File "/x/torch/distributed/checkpoint/filesystem.py", line 9 in _write\n'
    '  File "/x/torch/distributed/c10d_logger.py", line 81 in wrapper\n'
)
SENT = 'Current thread 0x1:\n  File "/x/sdtrain/runtime/distributed.py", line 7 in wait_for_ranks\n'
RECOMPUTED = 'Current thread 0x1:\n  File "/x/torch/nn/functional.py", line 2 in silu\n' + BACKWARD[42:]
LOADING = BUSY + '  File "/x/torch/distributed/c10d_logger.py", line 81 in wrapper\n'  # called from there


@pytest.mark.parametrize(
    ("stacks", "culprit"),
    [
        ({0: WAITING, 1: BUSY}, 1),
        ({0: BUSY, 1: "gave no stacks; it is stopped", 2: WAITING}, 1),
        ({0: WAITING, 1: WAITING}, None),
        ({0: BUSY, 1: BUSY}, None),
        ({0: BACKWARD, 1: BUSY}, 1),
        ({0: BACKWARD, 1: BACKWARD}, None),
        ({0: RECOMPUTED, 1: BACKWARD, 2: WAITING}, 0),
        ({0: OPERATOR, 1: STORAGE}, 1),
        ({0: WAITING, 1: LOADING}, 1),
        ({0: SENT, 1: BUSY}, 1),
    ],
)
def test_the_rank_that_does_not_wait_for_the_others_is_the_root(stacks, culprit):
    assert Hang(1.0, stacks).culprit() == culprit


@pytest.mark.parametrize("stack", [BACKWARD, WAITING, BUSY])
def test_the_only_rank_of_a_job_waits_for_no_other(stack):
    assert Hang(1.0, {0: stack}, several=False).culprit() == 0


@pytest.mark.parametrize(("stack", "culprit"), [(BACKWARD, None), (WAITING, None), (BUSY, 3)])
def test_the_only_rank_of_a_node_may_wait_for_other_nodes(stack, culprit):
    assert Hang(1.0, {3: stack}).culprit() == culprit


def test_the_innermost_frames_are_named():
    assert Hang(1.0, {1: BUSY, 0: WAITING}).innermost() == [
        "rank 0: reduce (c10d.py:9)",
        "rank 1: load (data.py:7)",
    ]
