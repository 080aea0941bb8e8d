"""Tests of platforms and shared_variables: the variables as they are on the second of two nodes of eight devices."""

import pytest

from sdlaunch.cluster import cluster
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.cluster.devices import Devices
from sdlaunch.cluster.platforms import PLATFORMS, Claim, Platform, Stated
from sdlaunch.cluster.shared_variables import world_size
from sdlaunch.settings import names, settings
from sdlaunch.settings.other_variables import is_foreign

GPUS = Devices("cuda", 8, 64, "")


def env(words: str) -> dict[str, str]:
    """NAME=value …"""
    return {name: value for name, _, value in (word.partition("=") for word in words.split())}


def resolve(environ, devices=GPUS, flags=()):
    read = settings.read(flags, environ)
    sources = {name: given.where for name, given in read.given.items()}
    return cluster.resolve(read.options, sources, environ, devices)


TWO_BY_EIGHT = {
    "plain": env("NNODES=2 NODE_RANK=1 MASTER_ADDR=node-0 MASTER_PORT=1234 NPROC_PER_NODE=8"),
    "torchrun": env(
        "PET_NNODES=2 PET_NODE_RANK=1 PET_MASTER_ADDR=node-0 PET_MASTER_PORT=1234 PET_NPROC_PER_NODE=8"
    ),
    "kubeflow trainer v2": env(
        "PET_NNODES=2 PET_NODE_RANK=1 PET_MASTER_ADDR=node-0 PET_MASTER_PORT=1234 PET_NPROC_PER_NODE=auto"
    ),
    "kubeflow pytorchjob v1": env(
        "PET_NNODES=2 PET_NODE_RANK=1 PET_MASTER_ADDR=node-0 PET_MASTER_PORT=1234 "
        "PET_NPROC_PER_NODE=8 PET_STANDALONE= MASTER_ADDR=node-0 MASTER_PORT=1234 WORLD_SIZE=16 "
        "RANK=1"
    ),
    "pai-dlc": env("MASTER_ADDR=node-0 MASTER_PORT=1234 WORLD_SIZE=2 RANK=1 NPROC_PER_NODE=8"),
    "volcano": env(
        "MASTER_ADDR=node-0 MASTER_PORT=1234 WORLD_SIZE=2 VC_TASK_INDEX=1 VC_WORKER_HOSTS=node-0,node-1"
    ),
    "sagemaker": env("SM_CURRENT_HOST=node-1 SM_NUM_GPUS=8 SM_MASTER_PORT=1234")
    | {"SM_HOSTS": '["node-0", "node-1"]'},
    "volcengine": env(
        "MLP_WORKER_NUM=2 MLP_ROLE_INDEX=1 MLP_WORKER_0_HOST=node-0 MLP_WORKER_0_PORT=1234 MLP_WORKER_GPU=8"
    ),
    "skypilot": env("SKYPILOT_NUM_NODES=2 SKYPILOT_NODE_RANK=1 SKYPILOT_NUM_GPUS_PER_NODE=8 MASTER_PORT=1234")
    | {"SKYPILOT_NODE_IPS": "node-0\nnode-1"},
    "dstack": env(
        "DSTACK_NODES_NUM=2 DSTACK_NODE_RANK=1 DSTACK_MASTER_NODE_IP=node-0 DSTACK_GPUS_PER_NODE=8 "
        "MASTER_PORT=1234"
    ),
    "runpod": env(
        "PRIMARY_ADDR=node-0 MASTER_ADDR=node-0 PRIMARY_PORT=1234 MASTER_PORT=1234 NODE_ADDR=node-1 "
        "NODE_RANK=1 NUM_NODES=2 NUM_TRAINERS=8 HOST_NODE_ADDR=node-0:1234 WORLD_SIZE=16"
    ),
    "azureml": env(
        "MASTER_ADDR=node-0 MASTER_PORT=1234 WORLD_SIZE=2 NODE_RANK=1 RANK=1 LOCAL_RANK=0 AZUREML_RUN_ID=x"
    ),
    "azureml with mpi": env(
        "AZ_BATCH_MASTER_NODE=node-0:1234 AZUREML_RUN_ID=x OMPI_COMM_WORLD_SIZE=2 "
        "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=1 OMPI_COMM_WORLD_LOCAL_RANK=0"
    ),
    "ascend": env(
        "MASTER_ADDR=node-0 MASTER_PORT=1234 WORLD_SIZE=16 RANK=1 LOCAL_WORLD_SIZE=8 "
        "LOCAL_RANK=0,1,2,3,4,5,6,7"
    ),
    "volcano without its pytorch plugin": env(
        "VC_TASK_INDEX=1 VC_WORKER_HOSTS=node-0,node-1 VC_WORKER_NUM=2 MASTER_PORT=1234"
    ),
    "volcano with a master": env(
        "MASTER_ADDR=node-0 MASTER_PORT=1234 WORLD_SIZE=2 RANK=1 VC_TASK_INDEX=0 "
        "VC_MASTER_HOSTS=node-0 VC_WORKER_HOSTS=node-1"
    ),
    "modelarts": env(
        "MA_NUM_HOSTS=2 MA_NUM_GPUS=8 VC_TASK_INDEX=1 VC_WORKER_HOSTS=node-0,node-1 MASTER_PORT=1234"
    ),
    "mpi": env(
        "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=1 "
        "OMPI_COMM_WORLD_LOCAL_RANK=0 MASTER_ADDR=node-0 MASTER_PORT=1234"
    ),
    "intel mpi": env(
        "PMI_SIZE=2 PMI_RANK=1 MPI_LOCALNRANKS=1 MPI_LOCALRANKID=0 MASTER_ADDR=node-0 MASTER_PORT=1234"
    ),
    "slurm": env(
        "SLURM_STEP_ID=0 SLURM_NNODES=2 SLURM_NODEID=1 SLURM_PROCID=1 SLURM_NTASKS_PER_NODE=1 "
        "SLURM_JOB_NODELIST=node-[0-1] MASTER_PORT=1234"
    ),
}


@pytest.mark.parametrize("platform", TWO_BY_EIGHT)
def test_every_platform_states_the_same_topology(platform):
    found = resolve(TWO_BY_EIGHT[platform])
    assert settings.read((), TWO_BY_EIGHT[platform]).problems == found.problems == ()
    assert found.cluster == Cluster(2, 1, "node-0:1234", 8)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_platform_is_read_by_its_own_function(platform):
    """A new row of PLATFORMS needs its variables in TWO_BY_EIGHT; those of others mean nothing to it."""
    assert PLATFORMS[platform].claim(TWO_BY_EIGHT[platform]).nodes.value == "2"
    others = {
        name: value for other in PLATFORMS if other != platform for name, value in TWO_BY_EIGHT[other].items()
    }
    assert PLATFORMS[platform].claim(others) == Claim()


@pytest.mark.parametrize("platform", TWO_BY_EIGHT)
def test_no_variable_of_a_platform_is_a_misspelled_setting(platform):
    unknown = [name for name in TWO_BY_EIGHT[platform] if not (is_foreign(name) or names.lookup(name))]
    assert unknown == []


def stated(environ, *variables, **derived):
    """A claim of these variables in the order of its fields; "": nothing."""
    values = (Stated(environ[name], name) if name else None for name in variables)
    fields = ("nodes", "node_rank", "address", "port", "nproc")
    claimed = {field: value for field, value in zip(fields, values, strict=False) if value}
    return Claim(**claimed | {name: Stated(*value) for name, value in derived.items()})


@pytest.mark.parametrize(
    ("platform", "changes", "variables", "derived"),
    [
        (
            "torchrun",
            {"PET_RDZV_ENDPOINT": "other:1"},  # weaker than the address and the port
            ("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT", "PET_NPROC_PER_NODE"),
            {},
        ),
        (
            "torchrun",
            {"PET_MASTER_ADDR": "", "PET_MASTER_PORT": "", "PET_RDZV_ENDPOINT": "node-0:5"},
            ("PET_NNODES", "PET_NODE_RANK", "", "", "PET_NPROC_PER_NODE"),
            {"address": ("node-0", "PET_RDZV_ENDPOINT"), "port": ("5", "PET_RDZV_ENDPOINT")},
        ),
        (
            "sagemaker",
            {"SM_HOST_COUNT": "9", "SM_CURRENT_HOST_RANK": "9"},  # weaker than the list
            ("", "", "", "SM_MASTER_PORT", "SM_NUM_GPUS"),
            {
                "nodes": ("2", "SM_HOSTS"),
                "node_rank": ("1", "SM_CURRENT_HOST"),
                "address": ("node-0", "SM_HOSTS", True),
            },
        ),
        (
            "sagemaker",
            env("SM_HOST_COUNT=2 SM_CURRENT_HOST_RANK=1 SM_MASTER_ADDR=a") | {"SM_HOSTS": '{"node-0": 0}'},
            ("SM_HOST_COUNT", "SM_CURRENT_HOST_RANK", "SM_MASTER_ADDR", "SM_MASTER_PORT", "SM_NUM_GPUS"),
            {},
        ),
        (
            "volcengine",
            {},
            ("MLP_WORKER_NUM", "MLP_ROLE_INDEX", "MLP_WORKER_0_HOST", "MLP_WORKER_0_PORT", "MLP_WORKER_GPU"),
            {},
        ),
        (
            "skypilot",
            {},
            ("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "", "", "SKYPILOT_NUM_GPUS_PER_NODE"),
            {"address": ("node-0", "SKYPILOT_NODE_IPS", True)},
        ),
        (
            "dstack",
            {},
            ("DSTACK_NODES_NUM", "DSTACK_NODE_RANK", "DSTACK_MASTER_NODE_IP", "", "DSTACK_GPUS_PER_NODE"),
            {},
        ),
        ("runpod", {}, ("NUM_NODES", "", "PRIMARY_ADDR", "PRIMARY_PORT", "NUM_TRAINERS"), {}),
        ("azureml", {}, ("WORLD_SIZE", "RANK"), {}),
        ("azureml", {"AZUREML_NODE_COUNT": "2", "RANK": ""}, ("AZUREML_NODE_COUNT", "NODE_RANK"), {}),
        (
            "ascend",
            {},
            ("", "RANK", "", "", "LOCAL_WORLD_SIZE"),
            {"nodes": ("2", "WORLD_SIZE / LOCAL_WORLD_SIZE")},
        ),
        (
            "volcano",
            {},
            ("", "VC_TASK_INDEX"),
            {"nodes": ("2", "VC_WORKER_HOSTS"), "address": ("node-0", "VC_WORKER_HOSTS", True)},
        ),
        (
            "modelarts",
            {},
            ("MA_NUM_HOSTS", "VC_TASK_INDEX", "", "", "MA_NUM_GPUS"),
            {"address": ("node-0", "VC_WORKER_HOSTS", True)},
        ),
        ("mpi", {}, ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), {}),
        (
            "slurm",
            {"SLURM_JOB_NUM_NODES": "9"},
            ("SLURM_NNODES", "SLURM_NODEID"),
            {"address": ("node-0", "SLURM_JOB_NODELIST", True)},
        ),
        (
            "slurm",
            {"SLURM_NNODES": "", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": ""},
            ("SLURM_JOB_NUM_NODES", "SLURM_NODEID"),
            {},
        ),
    ],
)
def test_what_a_platform_states_and_by_which_variable(platform, changes, variables, derived):
    environ = TWO_BY_EIGHT[platform] | changes
    read = PLATFORMS[{"modelarts": "volcano"}.get(platform, platform)].claim
    assert read(environ) == stated(environ, *variables, **derived)


def test_slurm_without_a_list_of_hosts_states_no_address():
    assert PLATFORMS["slurm"].claim({"SLURM_PROCID": "1", "SLURM_NODEID": "1"}).address is None


@pytest.mark.parametrize("rank", ["RANK", "VC_TASK_INDEX", "VK_TASK_INDEX"])
def test_the_variables_that_several_platforms_share(rank):
    environ = {"WORLD_SIZE": "2", rank: "1", "MASTER_ADDR": "node-0", "MASTER_PORT": "1234"}
    assert world_size(environ) == stated(environ, "WORLD_SIZE", rank, "MASTER_ADDR")  # the port is a setting
    for another in ("PET_NNODES", "NUM_NODES"):  # platforms where WORLD_SIZE counts processes
        assert world_size(environ | {another: "2"}) == Claim()
    of_a_process = world_size(environ | {"LOCAL_RANK": "0"})
    assert of_a_process.unclear and of_a_process.nodes is None
    assert world_size({"LOCAL_RANK": "0", "WORLD_SIZE": "1"}) == Claim()


def test_a_new_platform_is_a_function_and_a_row_of_the_table(monkeypatch):
    def acme(environ):
        if "ACME_RANK" not in environ:
            return Claim()
        return Claim(
            nodes=Stated(environ["ACME_NODES"], "ACME_NODES"),
            node_rank=Stated(environ["ACME_RANK"], "ACME_RANK"),
            address=Stated(environ["ACME_HEAD"], "ACME_HEAD"),
        )

    monkeypatch.setitem(PLATFORMS, "acme", Platform(acme, ("ACME_",)))
    found = resolve({"ACME_NODES": "3", "ACME_RANK": "2", "ACME_HEAD": "head"})
    assert (found.problems, found.cluster) == ((), Cluster(3, 2, "head:29400", 8))
    assert found.sources["NODE_RANK"] == "ACME_RANK"


# What three platforms set on one of two nodes, and the plan that follows.
COMPLETE = {
    "runpod": (
        env(
            "PRIMARY_ADDR=10.65.0.2 MASTER_ADDR=10.65.0.2 PRIMARY_PORT=29400 MASTER_PORT=29400 "
            "NODE_ADDR=10.65.0.3 NODE_RANK=1 NUM_NODES=2 NUM_TRAINERS=8 "
            "HOST_NODE_ADDR=10.65.0.2:29400 WORLD_SIZE=16"
        ),
        Cluster(2, 1, "10.65.0.2:29400", 8),
    ),
    "azureml": (
        env(
            "MASTER_ADDR=10.0.0.4 MASTER_PORT=6105 WORLD_SIZE=2 NODE_RANK=0 RANK=0 LOCAL_RANK=0 "
            "AZUREML_RUN_ID=x"
        ),
        Cluster(2, 0, "10.0.0.4:6105", 8),
    ),
    "ascend": (
        env(
            "MASTER_ADDR=10.0.0.4 MASTER_PORT=2222 WORLD_SIZE=8 RANK=1 LOCAL_WORLD_SIZE=4 LOCAL_RANK=0,1,2,3"
        ),
        Cluster(2, 1, "10.0.0.4:2222", 4),
    ),
}


@pytest.mark.parametrize("platform", COMPLETE)
def test_everything_that_a_platform_sets_on_one_node(platform):
    environ, planned = COMPLETE[platform]
    assert settings.read((), environ).problems == ()
    found = resolve(environ)
    assert (found.problems, found.cluster) == ((), planned)
    alone = resolve(environ | {"NNODES": "1"})
    assert (alone.problems, alone.cluster.nodes, alone.cluster.endpoint) == ((), 1, None)


@pytest.mark.parametrize("platform", TWO_BY_EIGHT)
def test_one_node_of_several_is_planned_where_users_say_so(platform):
    if "NNODES" not in TWO_BY_EIGHT[platform]:
        found = resolve(TWO_BY_EIGHT[platform] | {"NNODES": "1"})
        assert (found.problems, found.cluster) == ((), Cluster(1, 0, None, 8))


BATCH = {"SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2"}
PER_DEVICE = {"WORLD_SIZE": "16", "MASTER_ADDR": "node-0"}


@pytest.mark.parametrize(
    ("environ", "subject", "word"),
    [
        (BATCH, "SLURM_NNODES", "srun"),
        (BATCH | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}, "SLURM_NNODES", "srun"),  # as sbatch sets them
        (PER_DEVICE | {"RANK": "0", "LOCAL_RANK": "0"}, "LOCAL_RANK", "NNODES"),
        ({"RANK": "3", "LOCAL_RANK": "3"}, "LOCAL_RANK", "NNODES"),
        ({"RANK_ID": "0", "RANK_SIZE": "8"}, "RANK_ID", "NNODES"),
        ({"WORLD_SIZE": "9", "LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "0,1"}, "WORLD_SIZE", "NNODES"),
        ({"VC_MASTER_HOSTS": "a", "VC_WORKER_HOSTS": "b"}, "VC_MASTER_HOSTS", "NNODES"),
        ({"NUM_NODES": "2", "NODE_RANK": "0"}, "MASTER_ADDR", "NNODES=1"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_ADDR", "NNODES=1"),
        ({"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "1"}, "MASTER_ADDR", "NNODES=1"),
        ({"RANK": "1"}, "NODE_RANK", "NNODES"),
        # sbatch within a step of one node: the variables of that step are passed on
        (
            BATCH | {"SLURM_STEP_ID": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0"},
            "SLURM_NNODES",
            "srun",
        ),
        ({"TF_CONFIG": '{"cluster": {"chief": ["a"], "worker": ["b"], "ps": ["c"]}}'}, "TF_CONFIG", "NNODES"),
        (
            {"CLUSTER_SPEC": '{"cluster": {"workerpool0": ["a"], "workerpool1": ["b"]}}'},
            "CLUSTER_SPEC",
            "NNODES",
        ),
        ({"PADDLE_TRAINERS_NUM": "2", "PADDLE_TRAINER_ID": "0"}, "PADDLE_TRAINERS_NUM", "NNODES"),
        ({"JOB_COMPLETION_INDEX": "1"}, "JOB_COMPLETION_INDEX", "NNODES=1"),
    ],
)
def test_variables_of_several_nodes_are_never_dropped_in_silence(environ, subject, word):
    (problem,) = resolve(environ).problems
    assert (problem.subject, problem.code) == (subject, 64)
    assert word in problem.remedy
    fixed = resolve(environ | {"NNODES": "1"})
    assert (fixed.problems, fixed.cluster) == ((), Cluster(1, 0, None, 8))


@pytest.mark.parametrize(
    ("platform", "changes", "subject"),
    [
        ("azureml", {"LOCAL_RANK": "1", "RANK": "9", "WORLD_SIZE": "16"}, "WORLD_SIZE"),
        ("azureml", {"RANK": "8", "WORLD_SIZE": "16"}, "WORLD_SIZE"),
        ("azureml", {"AZUREML_NODE_COUNT": "2", "WORLD_SIZE": "16"}, "WORLD_SIZE"),
        (
            "mpi",
            {"OMPI_COMM_WORLD_SIZE": "16", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"},
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ),
        ("intel mpi", {"PMI_SIZE": "16", "MPI_LOCALNRANKS": "8"}, "MPI_LOCALNRANKS"),
        ("slurm", {"SLURM_NTASKS_PER_NODE": "8"}, "SLURM_NTASKS_PER_NODE"),
        (
            "slurm",
            {"SLURM_NTASKS_PER_NODE": "", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"},
            "SLURM_NTASKS_PER_NODE",
        ),
    ],
)
def test_several_launchers_on_a_node_are_refused(platform, changes, subject):
    for nnodes in ({}, {"NNODES": "1"}):
        problems = resolve(TWO_BY_EIGHT[platform] | changes | nnodes).problems
        assert subject in {problem.subject for problem in problems}
        assert {problem.code for problem in problems} == {64}


def test_a_job_for_another_platform_may_be_emitted_inside_an_allocation():
    read = settings.read((), BATCH)
    assert cluster.resolve(read.options, {}, BATCH, GPUS, assigns_ranks=True).problems == ()


def test_a_batch_script_on_one_node_needs_no_srun():
    environ = {"SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "8"}
    found = resolve(environ)
    assert (found.problems, found.cluster) == ((), Cluster(1, 0, None, 8))


@pytest.mark.parametrize(
    "environ",
    [
        {"TF_CONFIG": '{"cluster": {"worker": ["a"], "ps": ["b"], "evaluator": ["c"]}}'},
        {"TF_CONFIG": "{}", "CLUSTER_SPEC": "[]"},
        {"CLUSTER_SPEC": '{"cluster": 3}', "TF_CONFIG": "none"},
        {"PADDLE_TRAINERS_NUM": "1", "JOB_COMPLETION_INDEX": "0"},
        {"JOB_COMPLETION_INDEX": "3", "NNODES": "1"},
    ],
)
def test_variables_of_other_frameworks_on_one_node(environ):
    found = resolve(environ)
    assert (found.problems, found.cluster.nodes) == ((), 1)


def test_a_step_on_fewer_nodes_than_the_allocation():
    changes = env("SLURM_NNODES=1 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NODELIST=node-1 SLURM_NODEID=0")
    found = resolve(TWO_BY_EIGHT["slurm"] | changes)
    assert (found.problems, found.cluster) == ((), Cluster(1, 0, None, 8))


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
