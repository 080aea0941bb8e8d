"""Two launchers on two nodes: names and addresses, faults, and the losses of an undisturbed run afterwards."""

import json
import signal
import time

import pytest

from sdjob.problems import bad_input
from sdjob.protocol import ExitNote
from tests.cluster import network as networks
from tests.cluster.conftest import SHORT, THREADS
from tests.cluster.network import ADDRESSES, ADDRESSES_V6
from tests.cluster.two_nodes import TwoNodes, kill
from tests.support.worker import losses

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    if reason := networks.missing():
        pytest.skip(f"no network namespaces: {reason}")
    with networks.started(tmp_path_factory.mktemp("network")) as network:
        yield network


@pytest.fixture
def job(network, mounts, tmp_path):
    (tmp_path / "output").mkdir()
    variables = {
        **SHORT,
        **THREADS,
        **mounts,
        "OUTPUT_DIR": str(tmp_path / "output"),
        "NNODES": "2",
        "NPROC_PER_NODE": "1",
        "MASTER_ADDR": "node0",
        "rendezvous_timeout": "60",
    }
    job = TwoNodes(network, tmp_path, variables)
    yield job
    job.close()


def assert_finished(job, undisturbed, codes=(0, 0)):
    assert job.ends() == list(codes), job.text
    assert losses(job.output) == undisturbed


def failure(job):
    return json.loads((job.output / "failure.json").read_text())


# --- names and addresses -----------------------------------------------------------------------------


def debian(node):
    """The machine's own name is a loopback address, as the installer of Debian writes it."""
    other = 1 - node
    return f"127.0.1.1 node{node}\n{ADDRESSES[f'node{other}']} node{other}\n"


@pytest.mark.parametrize(
    ("names", "master"),
    [
        (debian, "node0"),
        (lambda node: "", ADDRESSES_V6["node0"]),
    ],
    ids=["a loopback address as their names", "IPv6 and no names"],
)
def test_nodes_find_each_other_by(job, undisturbed, names, master):
    for node in job.nodes:
        hosts = job.folder / f"hosts{node.number}"
        hosts.write_text(f"127.0.0.1 localhost\n{names(node.number)}")
        node.start(hosts, MASTER_ADDR=master)
    assert_finished(job, undisturbed)
    addresses = ADDRESSES_V6 if ":" in master else ADDRESSES
    for node in job.nodes:
        assert f"this node {addresses[f'node{node.number}']} on eth0; GLOO_SOCKET_IFNAME=eth0" in node.text


def test_a_name_that_does_not_resolve(job):
    node = job.nodes[1].start(MASTER_ADDR="nowhere", check_timeout="12")
    assert node.end(40) == 69, node.text
    assert (
        "MASTER_ADDR: nowhere (environment: MASTER_ADDR) cannot be looked up on node1 within 12 s"
        in node.text
    )
    assert "waiting for the name of node 0, nowhere" in node.text
    assert failure(job)["problems"][0]["subject"] == "MASTER_ADDR"


# --- nodes that do not come --------------------------------------------------------------------------


def test_node_1_never_comes(job):
    node = job.nodes[0].start(rendezvous_timeout="15")
    assert node.end(60) == 69, node.text
    assert "waiting for node 1 of 2: no start seen in" in node.text
    assert "nodes: no rendezvous with node 1 of 2" in node.text


def test_node_0_never_comes(job):
    node = job.nodes[1].start(rendezvous_timeout="12")
    assert node.end(60) == 69, node.text
    assert (
        f"waiting for node 0 at node0:29400 ({ADDRESSES['node0']}), on node 1 of 2: connection refused"
        in node.text
    )
    assert "MASTER_ADDR: node 0 at node0:29400" in node.text


def test_a_refused_node_ends_the_other(job):
    job.nodes[0].start()
    job.nodes[0].until("waiting for node 1")
    assert job.nodes[1].start(DATASET_DIR="/nonexistent").end() == 66
    started = time.monotonic()
    assert job.nodes[0].end(30) == 66, job.text
    assert time.monotonic() - started < 20
    assert "node 1 failed, and this node with it: DATASET_DIR" in job.nodes[0].text
    assert failure(job)["node"] == 1


# --- faults while training ---------------------------------------------------------------------------


@pytest.mark.parametrize("node", [0, 1])
def test_a_killed_torchrun(job, undisturbed, node):
    """The ranks on both nodes save and end, restarts or not."""
    job.start(max_restarts="1").trains()
    kill(job.nodes[node].torchrun().pid)
    assert [each.end() for each in job.nodes] == [75, 75], job.text
    assert_finished(job.start(), undisturbed)


def test_a_killed_launcher(job, undisturbed):
    """The ranks on both nodes save and end."""
    job.start().trains()
    kill(job.nodes[1].process.pid)
    job.nodes[1].process.wait()
    assert job.nodes[0].end() == 75, job.text
    assert_finished(job.start(), undisturbed)


def test_a_cable_is_cut_for_20_seconds(job, network, undisturbed):
    job.start().trains()
    with network.cut():
        time.sleep(20)
    assert_finished(job, undisturbed)


def test_nodes_stopped_at_different_times(job, undisturbed):
    job.start().trains()
    job.nodes[1].signal(signal.SIGTERM)
    time.sleep(5)
    if job.nodes[0].process.poll() is None:
        job.nodes[0].signal(signal.SIGTERM)
    assert job.ends() == [75, 75], job.text
    assert_finished(job.start(), undisturbed)


def test_an_earlier_note_on_one_node_ends_both(job, undisturbed):
    """On node 0 a rank then waits for its peer, which never starts again."""
    job.start(max_restarts="1").trains()
    victim = job.nodes[1]
    rank, beat = victim.rank()
    ExitNote(rank, 66, 1, problems=(bad_input("image 3", "broken", "Replace it."),)).write(victim.notes)
    kill(beat.pid)
    started = time.monotonic()
    assert job.ends() == [66, 66], job.text
    assert time.monotonic() - started < 60  # hang_timeout is an hour
    assert failure(job)["problems"][0]["subject"] == "image 3"
    assert "node 1 failed, and this node with it: image 3: broken" in job.nodes[0].text
    assert_finished(job.start(), undisturbed)
