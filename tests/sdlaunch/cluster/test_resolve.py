"""One cluster from the variables of any platform; contradictions and gaps are named."""

from pathlib import Path

import pytest

from sdlaunch.cluster import resolve as cluster
from sdlaunch.cluster.devices import Devices
from sdlaunch.cluster.resolve import Cluster
from sdlaunch.settings import resolve as settings

GPUS = Devices("cuda", 8, 64, "")
CPU = Devices("cpu", 4, 4, "")


def resolve(environ, devices=GPUS, flags=()):
    read = settings.read(flags, environ)
    sources = {name: given.where for name, given in read.given.items()}
    return cluster.resolve(read.options, sources, environ, devices)


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


TWO_BY_EIGHT = {
    "plain": {
        "NNODES": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "node-0",
        "MASTER_PORT": "1234",
        "NPROC_PER_NODE": "8",
    },
    "torchrun": {
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "node-0",
        "PET_MASTER_PORT": "1234",
        "PET_NPROC_PER_NODE": "8",
    },
    "kubeflow trainer v2": {
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "node-0",
        "PET_MASTER_PORT": "1234",
        "PET_NPROC_PER_NODE": "auto",
    },
    "kubeflow pytorchjob v1": {
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "node-0",
        "PET_MASTER_PORT": "1234",
        "PET_NPROC_PER_NODE": "8",
        "PET_STANDALONE": "",
        "MASTER_ADDR": "node-0",
        "MASTER_PORT": "1234",
        "WORLD_SIZE": "16",
        "RANK": "1",
    },
    "pai-dlc": {
        "MASTER_ADDR": "node-0",
        "MASTER_PORT": "1234",
        "WORLD_SIZE": "2",
        "RANK": "1",
        "NPROC_PER_NODE": "8",
    },
    "volcano": {
        "MASTER_ADDR": "node-0",
        "MASTER_PORT": "1234",
        "WORLD_SIZE": "2",
        "VC_TASK_INDEX": "1",
        "VC_WORKER_HOSTS": "node-0,node-1",
    },
    "sagemaker": {
        "SM_HOSTS": '["node-0", "node-1"]',
        "SM_CURRENT_HOST": "node-1",
        "SM_NUM_GPUS": "8",
        "SM_MASTER_PORT": "1234",
    },
    "volcengine": {
        "MLP_WORKER_NUM": "2",
        "MLP_ROLE_INDEX": "1",
        "MLP_WORKER_0_HOST": "node-0",
        "MLP_WORKER_0_PORT": "1234",
        "MLP_WORKER_GPU": "8",
    },
    "skypilot": {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "node-0\nnode-1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "MASTER_PORT": "1234",
    },
    "dstack": {
        "DSTACK_NODES_NUM": "2",
        "DSTACK_NODE_RANK": "1",
        "DSTACK_MASTER_NODE_IP": "node-0",
        "DSTACK_GPUS_PER_NODE": "8",
        "MASTER_PORT": "1234",
    },
    "slurm": {
        "SLURM_NNODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_PROCID": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_JOB_NODELIST": "node-[0-1]",
        "MASTER_PORT": "1234",
    },
}


@pytest.mark.parametrize("platform", TWO_BY_EIGHT)
def test_one_topology_in_every_platforms_words(platform):
    found = resolve(TWO_BY_EIGHT[platform])
    assert found.problems == ()
    assert found.cluster == Cluster(2, 1, "node-0:1234", 8)


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


def test_a_world_size_that_counts_processes_is_no_contradiction():
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


def test_slurm_with_a_task_per_device_is_refused():
    problems = resolve(TWO_BY_EIGHT["slurm"] | {"SLURM_NTASKS_PER_NODE": "8"}).problems
    assert [problem.subject for problem in problems] == ["SLURM_NTASKS_PER_NODE"]


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("gpu[003-004,7],x1", "gpu003"),
        ("a1,b2", "a1"),
        ("node-7", "node-7"),
        ("x[12,15]", "x12"),
        ("gpu-[01-02]-ib", "gpu-01-ib"),
        ("rack[1-2]n[1-4],y", "rack1n1"),
    ],
)
def test_the_first_host_of_a_slurm_nodelist(nodelist, first):
    found = resolve(TWO_BY_EIGHT["slurm"] | {"SLURM_JOB_NODELIST": nodelist})
    assert found.cluster.endpoint == f"{first}:1234"


@pytest.mark.parametrize("platform", ["slurm", "skypilot", "sagemaker"])
def test_an_address_of_ones_own_goes_before_one_from_a_list_of_hosts(platform):
    found = resolve(TWO_BY_EIGHT[platform] | {"MASTER_ADDR": "node0-ib0", "SM_MASTER_ADDR": ""})
    assert found.problems == ()
    assert found.cluster.endpoint.startswith("node0-ib0:")


@pytest.mark.parametrize(
    ("variable", "platform"),
    [
        ("MLP_WORKER_GPU", "volcengine"),
        ("SM_NUM_GPUS", "sagemaker"),
        ("SKYPILOT_NUM_GPUS_PER_NODE", "skypilot"),
        ("DSTACK_GPUS_PER_NODE", "dstack"),
    ],
)
def test_no_devices_say_nothing_of_processes(variable, platform):
    assert variable in TWO_BY_EIGHT[platform]
    found = resolve(TWO_BY_EIGHT[platform] | {variable: "0"})
    assert (found.problems, found.cluster.nproc_per_node) == ((), resolve({}).cluster.nproc_per_node)


@pytest.mark.parametrize(
    ("endpoint", "found"),
    [
        ("node-0:1234", "node-0:1234"),
        ("node-0", "node-0:29400"),
        ("[fd00::1]:1234", "[fd00::1]:1234"),
        ("fd00::1", "[fd00::1]:29400"),
    ],
)
def test_endpoints_of_torchrun(endpoint, found):
    environ = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_RDZV_ENDPOINT": endpoint}
    resolved = resolve(environ)
    assert (resolved.problems, resolved.cluster.endpoint) == ((), found)


def test_an_empty_number_of_nodes_leaves_the_platforms_word():
    environ = {"PET_NNODES": "", "WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "node-0"}
    assert resolve(environ).cluster.nodes == 2


def test_every_platform_has_a_topology_above():
    """A platform that is added needs its line in the table."""
    code = Path(cluster.__file__).read_text(encoding="utf-8")
    assert len(cluster.PLATFORMS) == code.count("(environ: Environ) -> Claim:")
    assert len(TWO_BY_EIGHT) >= len(cluster.PLATFORMS)
