"""launcher=accelerate: the exact command, the configuration file, and processes that really run."""

from pathlib import Path

import pytest

from sdlaunch import command
from sdlaunch.cluster import accelerate
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.command import Host
from sdlaunch.settings.options import LaunchOptions
from tests.sdlaunch.test_command import DREAMBOOTH, WORKER_FLAGS
from tests.sdlaunch.workspace import launch
from tests.support import launcher
from tests.support.launcher import found, pasted

SCRIPT = """
import sys
from accelerate import Accelerator
state = Accelerator().state
print(f"{sys.argv[1]} {state.num_processes} {state.process_index} {state.device.type}", flush=True)
"""


def build(cluster, device="cpu", **options):
    host = Host(Path("/mnt/project"), "/usr/bin/python3", 8, {})
    spec = DREAMBOOTH.model_copy(update={"device": device})
    return command.build(spec, cluster, host, {}, LaunchOptions(launcher="accelerate", **options))


def prepare(workspace, **variables):
    return launcher.prepare({**workspace, "launcher": "accelerate", **variables})


def test_two_processes_on_a_cpu():
    launched = build(Cluster(1, 0, None, 2))
    assert launched.argv == (
        "/usr/bin/python3",
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
        "--machine_rank=0",
        "--main_process_port=0",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--rdzv_backend=c10d",
        "--rdzv_conf=store_type=file,keep_alive_interval=86400",
        "--log_dir=/dev/null",
        "-m",
        "sdtrain",
        *WORKER_FLAGS,
    )
    assert launched.env["PET_LOCAL_ADDR"] == "127.0.0.1"
    assert launched.env["ACCELERATE_USE_CPU"] == "true"


def test_one_process_is_started_by_torchrun():
    argv = build(Cluster(1, 0, None, 1), accelerate_config="/c.yaml", max_restarts=3).argv
    assert argv[3:5] == ("--config_file=/c.yaml", "--cpu")
    assert argv[11 : -len(WORKER_FLAGS)] == (
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file,keep_alive_interval=86400",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=1",
        "--max-restarts=3",
        "--log-dir=/dev/null",
        "-m",
        "sdtrain",
    )


def test_two_nodes_with_another_type_of_device():
    launched = build(Cluster(2, 1, "[fe80::1]:1234", 8), device="gcu", max_restarts=2)
    assert launched.argv[3:12] == (
        "--multi_gcu",
        "--num_processes=16",
        "--num_machines=2",
        "--machine_rank=1",
        "--main_process_ip=[fe80::1]",
        "--main_process_port=1234",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--max_restarts=2",
    )
    assert "ACCELERATE_USE_CPU" not in launched.env


def test_the_file_sets_the_number_of_processes(workspace, tmp_path):
    config = tmp_path / "default_config.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\nmixed_precision: no\nnum_machines: 1\nnum_processes: 2\n"
    )
    job = prepare(workspace, accelerate_config=str(config))
    assert job.problems == ()
    assert job.cluster.nproc_per_node == 2
    assert str(config) in job.settings["NPROC_PER_NODE"].source
    assert f"--config_file={config}" in job.launch.argv


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("num_processes: 8", ("num_processes: 8", "1 node × 3 processes (NNODES, NPROC_PER_NODE)")),
        ("num_machines: 2", ("num_machines: 2", "NNODES=1")),
        ("mixed_precision: fp16", ("mixed_precision: fp16", "mixed_precision=no")),
        ("distributed_type: FSDP", ("distributed_type: FSDP", "plugin=torch_ddp")),
        ("compute_environment: AMAZON_SAGEMAKER", ("AMAZON_SAGEMAKER", "this machine")),
    ],
)
def test_contradictions_name_both(workspace, tmp_path, line, words):
    config = tmp_path / "config.yaml"
    config.write_text(line + "\n")
    job = prepare(workspace, accelerate_config=str(config), NPROC_PER_NODE="3", NNODES="1")
    assert found(job) == [("accelerate_config", 64)]
    assert all(word in job.problems[0].found for word in words)


@pytest.mark.parametrize("text", [None, "- a\n", "a: [\n", "\xff"])
def test_a_file_that_cannot_be_used(workspace, tmp_path, text):
    config = tmp_path / "config.yaml"
    if text is not None:
        config.write_text(text, encoding="latin-1")
    assert found(prepare(workspace, accelerate_config=str(config))) == [("accelerate_config", 64)]


def test_a_file_without_the_launcher(workspace):
    assert found(prepare(workspace, launcher="torchrun", accelerate_config="/c")) == [
        ("accelerate_config", 64)
    ]


def test_without_the_package_the_code_is_69(workspace, monkeypatch):
    monkeypatch.setattr(accelerate, "find_spec", lambda name: None)
    job = prepare(workspace)
    assert found(job) == [("launcher", 69)]
    assert "pip install accelerate" in job.problems[0].remedy


@pytest.mark.parametrize("processes", [1, 2])
def test_that_many_processes_run_on_the_cpu(workspace, tmp_path, processes):
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    settings = {"launcher": "accelerate", "script": str(script), "script_args": "{instance_prompt}"}
    done = launch(**workspace, **settings, NPROC_PER_NODE=str(processes), instance_prompt="it's $(a)")
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "output" / "logs" / "node-0.log").read_text()
    for rank in range(processes):
        assert f"[rank {rank}] it's $(a) {processes} {rank} cpu" in log


def test_the_pasted_command_does_the_same(workspace, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    job = prepare(workspace, script=str(script), script_args="'a $(touch pwned)' x", NPROC_PER_NODE="2")
    said = pasted(job, tmp_path)
    # Without the launcher both ranks write to one stream, where a line of one may begin within that of the other.
    assert all(f"a $(touch pwned) 2 {rank} cpu" in said for rank in (0, 1))
    assert not list(tmp_path.rglob("pwned"))
