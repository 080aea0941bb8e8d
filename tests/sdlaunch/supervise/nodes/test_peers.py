"""What a node knows of the others from the shared output folder."""

import json
import os
import time
from dataclasses import asdict

import pytest

from sdjob.output.layout import OutputLayout
from sdjob.protocol import Channel, ExitNote, Heartbeat
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.supervise import lock, processes
from sdlaunch.supervise.lock import Holder
from sdlaunch.supervise.nodes import peers
from sdlaunch.supervise.nodes.peers import Peers

TORCHRUN = 1


@pytest.fixture
def layout(tmp_path):
    layout = OutputLayout(tmp_path)
    layout.run.mkdir()
    return layout


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(peers, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(peers, "_SILENCE_IF_FINAL", -1.0)
    monkeypatch.setattr(peers, "_SILENCE_IF_CRASHED", -1.0)
    monkeypatch.setattr(peers, "_REPORTED", 0.1)


@pytest.fixture
def has_ranks(monkeypatch):
    """Whether torchrun runs ranks: set its only item."""
    answer = [True]
    monkeypatch.setattr(processes, "has_children", lambda pid: answer[0])
    return answer


def peers_of(layout, rank=0, nodes=2, say=print):
    notes = Channel.of_node(layout.run, rank).notes
    notes.mkdir(exist_ok=True)
    return Peers(layout, Cluster(nodes, rank, "node0:29400", 1), notes, say, 60)


def report(layout, node, code, at="2030-01-01T00:00:00.000+00:00", **more):
    problems = [] if code == 70 else [{"subject": "image", "found": "broken", "remedy": "", "code": code}]
    values = {
        "node": node,
        "code": code,
        "class": "bad input",
        "root_rank": 0,
        "time": at,
        "evidence": [],
        "remedy": "",
        "problems": problems,
    }
    (layout.run / f"failure-{node}.json").write_text(json.dumps({**values, **more}))


def holds(layout, node, age=0.0, nodes=2):
    """The lock file of a node, renewed so many seconds ago."""
    path = layout.run / f"lock-{node}"
    holder = Holder.of_this(Cluster(nodes, node, "node0:29400", 1))
    path.write_text(json.dumps({**asdict(holder), "host": f"host{node}"}))
    os.utime(path, (time.time() - age,) * 2)


def test_a_refused_node_ends_the_others(layout, has_ranks):
    watched = peers_of(layout)
    assert not watched.job_is_over(TORCHRUN)
    report(layout, 1, 66)
    assert watched.job_is_over(TORCHRUN) and watched.awaited_cause()["node"] == 1


def test_a_node_waits_for_a_crashed_one_that_may_come_back(layout, has_ranks):
    watched = peers_of(layout)
    report(layout, 1, 70)
    has_ranks[0] = False  # torchrun waits for it
    assert not watched.job_is_over(TORCHRUN) and not watched.job_is_over(None)
    has_ranks[0] = True  # ranks wait for peers that have ended
    assert watched.job_is_over(TORCHRUN)


def test_ranks_that_make_progress_are_left_alone(layout, has_ranks, monkeypatch):
    monkeypatch.setattr(peers, "_SILENCE_IF_FINAL", 30.0)
    watched = peers_of(layout)
    report(layout, 1, 66)
    assert not watched.job_is_over(TORCHRUN)
    watched._signs.at -= 40
    Heartbeat(os.getpid(), "step").write(watched.notes, 0)
    os.utime(next(watched.notes.iterdir()), (100.0, 100.0))  # by a clock that was set back
    assert not watched.job_is_over(TORCHRUN)
    watched._signs.at -= 40
    assert watched.job_is_over(TORCHRUN)


def test_reports_of_an_earlier_run_and_of_this_node_count_for_nothing(layout, has_ranks):
    report(layout, 1, 66)
    watched = peers_of(layout)
    report(layout, 0, 66)
    assert not watched.job_is_over(TORCHRUN) and watched.awaited_cause() is None
    (layout.run / "failure-1.json").unlink()  # node 1 starts again
    assert not watched.job_is_over(TORCHRUN)
    report(layout, 1, 66, at="2030-01-02T00:00:00.000+00:00")
    assert watched.job_is_over(TORCHRUN)


def test_the_missing_nodes(layout):
    own = peers_of(layout, nodes=4)
    holds(layout, 0, nodes=4)
    assert own.missing() == f"nodes 1, 2, 3 of 4: no start seen in {layout.run}, which all nodes share"
    holds(layout, 1, nodes=4)
    holds(layout, 2, age=lock.SILENCE + 1, nodes=4)
    holds(layout, 3, nodes=3)  # of another job
    assert own.missing().startswith("nodes 2, 3 of 4")
    holds(layout, 2, nodes=4)
    holds(layout, 3, nodes=4)
    assert own.missing() == "nodes 1 (host1), 2 (host2), 3 (host3) of 4 at node0:29400"


def test_the_last_end_of_a_missing_node(layout):
    report(layout, 1, 66)
    assert peers_of(layout).missing().endswith("which all nodes share; node 1 last ended with bad input")


def test_a_line_soon_and_then_regularly(layout, has_ranks, monkeypatch):
    said = []
    watched = peers_of(layout, say=said.append)
    for seconds, lines in ((0, 0), (11, 1), (35, 1), (37, 2), (60, 2), (63, 3)):
        has_ranks[0] = False
        watched.job_is_over(TORCHRUN)
        watched._reminder.started = time.monotonic() - seconds
        watched.job_is_over(TORCHRUN)
        assert len(said) == lines, seconds
    assert watched.is_waiting
    assert said[0].startswith("waiting for node 1 of 2: no start seen in ")
    assert said[0].endswith(" (11 s of 60 s)")
    has_ranks[0] = True
    watched.job_is_over(TORCHRUN)
    assert not watched.is_waiting and watched._reminder is None


@pytest.mark.parametrize(("code", "over"), [(75, True), (70, False)])
def test_ranks_that_have_saved_wait_for_no_lost_node(layout, has_ranks, code, over):
    watched = peers_of(layout)
    ExitNote(0, code, 3).write(watched.notes)
    assert not watched.job_is_over(TORCHRUN)  # a rank is left
    has_ranks[0] = False
    assert watched.job_is_over(TORCHRUN) is over
