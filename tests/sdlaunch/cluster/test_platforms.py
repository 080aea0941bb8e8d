"""Each platform's variables, as they are on the second of two nodes of eight devices."""

import pytest

from sdlaunch.cluster import resolve as cluster
from sdlaunch.cluster.devices import Devices
from sdlaunch.cluster.platforms import PLATFORMS, Claim, Stated
from sdlaunch.cluster.resolve import Cluster
from sdlaunch.settings import resolve as settings

GPUS = Devices("cuda", 8, 64, "")


def resolve(environ, devices=GPUS, flags=()):
    read = settings.read(flags, environ)
    sources = {name: given.where for name, given in read.given.items()}
    return cluster.resolve(read.options, sources, environ, devices)


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
def test_every_platform_states_the_same_topology(platform):
    found = resolve(TWO_BY_EIGHT[platform])
    assert settings.read((), TWO_BY_EIGHT[platform]).problems == found.problems == ()
    assert found.cluster == Cluster(2, 1, "node-0:1234", 8)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_platform_is_read_by_its_own_function(platform):
    """A new line of PLATFORMS needs its variables in TWO_BY_EIGHT; those of others mean nothing to it."""
    assert PLATFORMS[platform](TWO_BY_EIGHT[platform]).nodes.value == "2"
    others = {
        name: value for other in PLATFORMS if other != platform for name, value in TWO_BY_EIGHT[other].items()
    }
    assert PLATFORMS[platform](others) == Claim()


def test_a_new_platform_is_a_function_and_a_line_of_the_table(monkeypatch):
    def acme(environ):
        if "ACME_RANK" not in environ:
            return Claim()
        return Claim(
            nodes=Stated(environ["ACME_NODES"], "ACME_NODES"),
            node_rank=Stated(environ["ACME_RANK"], "ACME_RANK"),
            address=Stated(environ["ACME_HEAD"], "ACME_HEAD"),
        )

    monkeypatch.setitem(PLATFORMS, "acme", acme)
    found = resolve({"ACME_NODES": "3", "ACME_RANK": "2", "ACME_HEAD": "head"})
    assert (found.problems, found.cluster) == ((), Cluster(3, 2, "head:29400", 8))
    assert found.sources["NODE_RANK"] == "ACME_RANK"


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


@pytest.mark.parametrize(
    ("variable", "platform"),
    [
        ("MLP_WORKER_GPU", "volcengine"),
        ("SM_NUM_GPUS", "sagemaker"),
        ("SKYPILOT_NUM_GPUS_PER_NODE", "skypilot"),
        ("DSTACK_GPUS_PER_NODE", "dstack"),
    ],
)
def test_zero_devices_say_nothing_about_processes(variable, platform):
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
