"""What a node waits for before torchrun starts: the name of node 0, then its port."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest

from sdjob.problems import JobError
from sdlaunch.cluster import route
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.cluster.route import Route
from sdlaunch.supervise.nodes import meeting
from sdlaunch.supervise.nodes.meeting import Interrupted, Meeting
from tests.support.worker import free_port

HERE = Route("127.0.0.1", "127.0.0.1", "lo")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(meeting, "Reminder", lambda say, limit: Reminder(say, limit, due=0.0))
    monkeypatch.setattr(meeting, "_PAUSE", 0.05)
    monkeypatch.setattr(meeting, "_SAY_EVERY", 0.2)


Reminder = meeting.Reminder


def node(rank=1, host="127.0.0.1", port=29400, is_over=lambda: False, **timeouts):
    """The meeting of a node, and the lines that it says."""
    settings = {
        "MASTER_ADDR": SimpleNamespace(source="environment: MASTER_ADDR"),
        "check_timeout": SimpleNamespace(value=timeouts.get("name", 5)),
        "rendezvous_timeout": SimpleNamespace(value=timeouts.get("node", 5)),
    }
    said = []
    plan = SimpleNamespace(cluster=Cluster(2, rank, f"{host}:{port}", 1), settings=settings)
    return Meeting(plan, said.append, is_over), said


def test_one_node_waits_for_none():
    plan = SimpleNamespace(cluster=Cluster(1, 0, None, 1))
    assert Meeting(plan, print, lambda: False).reach() is None


def test_node_0_needs_only_its_name():
    waiting, said = node(rank=0, host="localhost")
    assert waiting.reach().target in ("127.0.0.1", "::1")
    assert said == []


def test_another_node_waits_until_node_0_listens():
    port = free_port()
    waiting, said = node(port=port)
    listener = socket.socket()

    def listen():
        while not said:
            time.sleep(0.01)
        listener.bind(("127.0.0.1", port))
        listener.listen()

    thread = threading.Thread(target=listen)
    thread.start()
    assert waiting.reach() == HERE
    thread.join()
    listener.close()
    assert (
        said[0] == f"waiting for node 0 at 127.0.0.1:{port}, on node 1 of 2: connection refused (0 s of 5 s)"
    )


def test_node_0_never_listens():
    port = free_port()
    waiting, said = node(port=port, node=0.5)
    with pytest.raises(JobError) as error:
        waiting.reach()
    [problem] = error.value.problems
    assert (problem.code, problem.subject) == (69, "MASTER_ADDR")
    assert (
        problem.found
        == f"node 0 at 127.0.0.1:{port} does not answer node 1 of 2 within 0.5 s: connection refused"
    )
    assert "rendezvous_timeout" in problem.remedy
    assert 2 <= len(said) <= 4  # not one line for each attempt


@pytest.mark.parametrize("rank", [0, 1])
def test_a_name_that_appears_later(monkeypatch, rank):
    looked_up = []

    def find(endpoint, node_rank):
        looked_up.append((endpoint, node_rank))
        if len(looked_up) < 3:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return HERE

    monkeypatch.setattr(route, "find", find)
    monkeypatch.setattr(meeting, "_why_unreachable", lambda address, port: "")
    waiting, said = node(rank, host="node0")
    assert waiting.reach() == HERE
    assert looked_up[0] == ("node0:29400", rank)
    assert said[0] == "waiting for the name of node 0, node0: Name or service not known (0 s of 5 s)"


def test_a_name_that_never_resolves(monkeypatch):
    def find(endpoint, node_rank):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(route, "find", find)
    with pytest.raises(JobError) as error:
        node(host="nodde0", name=0.3)[0].reach()
    [problem] = error.value.problems
    assert (problem.code, problem.subject) == (69, "MASTER_ADDR")
    assert problem.found.startswith("nodde0 (environment: MASTER_ADDR) cannot be looked up on ")
    assert problem.found.endswith(" within 0.3 s: Name or service not known")


def test_a_name_server_that_never_answers(monkeypatch):
    hung = threading.Event()
    monkeypatch.setattr(route, "find", lambda *_: hung.wait())
    started = time.monotonic()
    with pytest.raises(JobError, match=r"within 0\.5 s: no answer"):
        node(name=0.5)[0].reach()
    assert time.monotonic() - started < 3
    hung.set()


@pytest.mark.parametrize("host", ["127.0.0.1", "name.invalid"])
def test_a_job_that_is_over_waits_no_longer(monkeypatch, host):
    monkeypatch.setattr(meeting, "_why_unreachable", lambda address, port: "no answer")
    with pytest.raises(Interrupted):
        node(host=host, is_over=lambda: True, name=60, node=60)[0].reach()
