"""One cluster from what users and platforms state; contradictions and gaps are named."""

import pytest

from sdlaunch.cluster.cluster import Cluster
from sdlaunch.cluster.devices import Devices
from sdlaunch.settings import settings
from tests.sdlaunch.cluster.test_platforms import GPUS, TWO_BY_EIGHT, resolve

CPU = Devices("cpu", 4, 4, "")


def test_nothing_set_is_one_node():
    found = resolve({}, CPU)
    assert found.cluster == Cluster(1, 0, None, 1)
    assert found.problems == ()


@pytest.mark.parametrize(
    ("asked", "devices", "processes"),
    [
        ("auto", GPUS, 8),
        ("gpu", GPUS, 8),
        ("3", GPUS, 3),
        ("cpu", GPUS, 64),
        ("auto", CPU, 1),
        ("cpu", CPU, 4),
    ],
)
def test_processes_per_node(asked, devices, processes):
    assert resolve({"NPROC_PER_NODE": asked}, devices).cluster.nproc_per_node == processes


def test_without_a_port_there_is_one():
    environ = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "10.0.0.1"}
    assert resolve(environ).cluster.endpoint == "10.0.0.1:29400"
    assert resolve(environ | {"MASTER_ADDR": "fe80::1"}).cluster.endpoint == "[fe80::1]:29400"


def test_users_may_take_fewer_processes_than_the_platform_offers():
    found = resolve(TWO_BY_EIGHT["torchrun"] | {"NPROC_PER_NODE": "2"})
    assert found.problems == ()
    assert found.cluster.nproc_per_node == 2
    assert found.sources["NPROC_PER_NODE"] == "environment: NPROC_PER_NODE"


@pytest.mark.parametrize(
    ("changes", "subject", "words"),
    [
        ({"NNODES": "3"}, "NNODES", ["3", "PET_NNODES"]),
        ({"NODE_RANK": "0"}, "NODE_RANK", ["PET_NODE_RANK"]),
        ({"MASTER_ADDR": "other"}, "MASTER_ADDR", ["other", "PET_MASTER_ADDR"]),
        ({"PET_NODE_RANK": "2"}, "NODE_RANK", ["2"]),
        ({"PET_NODE_RANK": ""}, "NODE_RANK", ["not set"]),
        ({"PET_MASTER_ADDR": ""}, "MASTER_ADDR", ["not set"]),
        ({"PET_NNODES": "two"}, "PET_NNODES", ["two"]),
        ({"PET_NNODES": ""}, "NODE_RANK", ["without"]),
        ({"PET_NPROC_PER_NODE": "8x"}, "PET_NPROC_PER_NODE", ["8x"]),
        ({"LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}, "LOCAL_RANK", ["torchrun"]),
    ],
)
def test_contradictions_and_gaps_are_named(changes, subject, words):
    problems = resolve(TWO_BY_EIGHT["torchrun"] | changes).problems
    assert {problem.code for problem in problems} == {64}
    (problem,) = [problem for problem in problems if problem.subject == subject]
    assert all(word in problem.found for word in words)


PROCESSES = {"NNODES": "2", "NODE_RANK": "1", "WORLD_SIZE": "16", "RANK": "8", "MASTER_ADDR": "node-0"}


def test_a_world_size_that_counts_processes_is_not_a_contradiction():
    for nproc in ("8", "auto"):
        resolved = resolve(PROCESSES | {"NPROC_PER_NODE": nproc})
        assert (resolved.problems, resolved.cluster) == ((), Cluster(2, 1, "node-0:29400", 8))


@pytest.mark.parametrize("changes", [{"WORLD_SIZE": "12"}, {"RANK": "9"}, {"RANK": "0"}])
def test_other_counts_of_processes_stay_contradictions(changes):
    problems = resolve(PROCESSES | {"NPROC_PER_NODE": "8"} | changes).problems
    assert problems
    assert all("contradict" in problem.remedy for problem in problems)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_as_many_nodes_as_processes_on_loopback_is_refused(address):
    environ = {"WORLD_SIZE": "8", "RANK": "0", "MASTER_ADDR": address, "NPROC_PER_NODE": "8"}
    (problem,) = resolve(environ).problems
    assert (problem.subject, problem.code) == ("WORLD_SIZE", 64)
    assert "counts nodes" in problem.found
    assert "one node of 8" in problem.found
    assert "NNODES=1" in problem.remedy
    fixed = resolve(environ | {"NNODES": "1"})
    assert (fixed.problems, fixed.cluster) == ((), Cluster(1, 0, None, 8))


def test_nodes_on_loopback_with_one_process_each_are_nodes():
    environ = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "NPROC_PER_NODE": "1"}
    resolved = resolve(environ)
    assert (resolved.problems, resolved.cluster.nodes) == ((), 2)


@pytest.mark.parametrize("variable", ["MASTER_ADDR", "PET_MASTER_ADDR"])
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("node-0:29400", "has a port"),
        ("10.0.0.4:29400", "has a port"),
        ("[fd00::1]:29400", "has a port"),
        ("[node-0]:29400", "has a port"),
        ("tcp://10.0.0.4:29400", "has a scheme"),
        ("node-0\nnode-1", "line break"),
        ("node-0 node-1", "space"),
        ("0.0.0.0", "every address"),
        ("::", "every address"),
        ("[::]", "every address"),
        ("[node-0]", "neither"),
        ("node-0,node-1", "neither"),
        ("user@node-0", "neither"),
    ],
)
def test_addresses_that_are_not_one_name_or_ip(variable, address, words):
    (problem,) = resolve({"NNODES": "2", "NODE_RANK": "0", variable: address}).problems
    assert (problem.subject, problem.code) == ("MASTER_ADDR", 64)
    assert all(word in problem.found for word in (words, repr(address), variable))


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("node-0", "node-0"),
        ("job_1-master-0.svc.cluster.local", "job_1-master-0.svc.cluster.local"),
        ("10.0.0.4", "10.0.0.4"),
        ("fd00::1", "[fd00::1]"),
        ("[fd00::1]", "[fd00::1]"),
        ("fe80::1%eth0", "[fe80::1%eth0]"),
    ],
)
def test_addresses_of_a_node(address, host):
    found = resolve({"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": address})
    assert (found.problems, found.cluster.endpoint) == ((), f"{host}:29400")


@pytest.mark.parametrize("port", ["0", "65536", "70000", "tcp://10.96.0.1:29400", "-1", "http"])
def test_ports_that_are_not_one(port):
    environ = {"PET_NNODES": "2", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "node-0", "PET_MASTER_PORT": port}
    (problem,) = resolve(environ).problems
    assert (problem.subject, problem.code) == ("PET_MASTER_PORT", 64)
    assert repr(port) in problem.found and "1 to 65535" in problem.remedy
    environ = {"MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "node-0"}
    assert [problem.subject for problem in settings.read((), environ).problems] == ["MASTER_PORT"]
    assert resolve(environ).problems == ()  # one message, from the settings


@pytest.mark.parametrize("platform", ["slurm", "skypilot", "sagemaker"])
def test_a_users_address_goes_before_one_from_a_list_of_hosts(platform):
    found = resolve(TWO_BY_EIGHT[platform] | {"MASTER_ADDR": "node0-ib0", "SM_MASTER_ADDR": ""})
    assert found.problems == ()
    assert found.cluster.endpoint.startswith("node0-ib0:")


def test_an_empty_number_of_nodes_leaves_the_platforms_number():
    environ = {"PET_NNODES": "", "WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "node-0"}
    assert resolve(environ).cluster.nodes == 2
