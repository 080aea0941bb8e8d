"""Settings and cluster → the exact command."""

import os
import shlex
import subprocess
from pathlib import Path
from string import Template

import pytest

from sdjob.settings.run_spec import RunSpec
from sdlaunch import command
from sdlaunch.cluster.cluster import Cluster
from sdlaunch.cluster.route import LOOPBACK, Route
from sdlaunch.command import Host, LaunchPlan
from sdlaunch.settings.options import LaunchOptions
from sdlaunch.user_script import Script

BASE = {"pretrained_model_name_or_path": "/mnt/model/sd", "output_dir": "/output", "device": "cpu"}
DREAMBOOTH = RunSpec(**BASE, instance_data_dir="/mnt/dataset", mixed_precision="no")
WORKER_FLAGS = [
    "--recipe=dreambooth",
    "--pretrained_model_name_or_path=/mnt/model/sd",
    "--output_dir=/output",
    "--seed=42",
    "--instance_data_dir=/mnt/dataset",
    "--resolution=512",
    "--train_batch_size=1",
    "--gradient_accumulation_steps=1",
    "--max_train_steps=400",
    "--learning_rate=5e-06",
    "--plugin=torch_ddp",
    "--mixed_precision=no",
    "--device=cpu",
]


def build(
    spec=DREAMBOOTH,
    cluster=Cluster(1, 0, None, 2),  # noqa: B008
    environ=None,
    passed_on=None,
    cores=8,
    script=None,
    **options,
):
    host = Host(Path("/mnt/project"), "/usr/bin/python3", cores, environ or {})
    return command.build(spec, cluster, host, passed_on or {}, LaunchOptions(**options), script)


def test_one_node():
    assert build().argv == (
        "/usr/bin/python3",
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file,keep_alive_interval=86400",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=2",
        "--log-dir=/dev/null",
        "-m",
        "sdtrain",
        *WORKER_FLAGS,
    )


def test_two_nodes():
    first, second = (build(cluster=Cluster(2, rank, "node-0:1234", 8)).argv for rank in (0, 1))
    assert first[3:11] == (
        "--nnodes=2",
        "--node-rank=0",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=node-0:1234",
        "--rdzv-id=sdjob",
        "--rdzv-conf=is_host=true,join_timeout=600",
        "--nproc-per-node=8",
        "--log-dir=/dev/null",
    )
    assert {a: b for a, b in zip(first, second, strict=True) if a != b} == {
        "--node-rank=0": "--node-rank=1",
        "--rdzv-conf=is_host=true,join_timeout=600": "--rdzv-conf=is_host=false,join_timeout=600",
    }


def test_the_route_to_node_0():
    cluster = Cluster(2, 1, "node-0:1234", 8, Route("10.0.0.1", "10.0.0.2", "eth1"))
    plan = build(cluster=cluster, rendezvous_timeout=90)
    assert plan.argv[8:10] == ("--rdzv-conf=is_host=false,join_timeout=90", "--local-addr=10.0.0.2")
    assert (plan.env["GLOO_SOCKET_IFNAME"], plan.env["NCCL_SOCKET_IFNAME"]) == ("eth1", "=eth1")
    own = build(
        cluster=cluster, environ={"GLOO_SOCKET_IFNAME": "ib0"}, passed_on={"NCCL_SOCKET_IFNAME": "ib"}
    ).env
    assert ("GLOO_SOCKET_IFNAME" in own, own["NCCL_SOCKET_IFNAME"]) == (False, "ib")


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"train_batch_size": 4, "learning_rate": 1e-5}, ["--train_batch_size=4", "--learning_rate=1e-05"]),
        ({"use_ema": True, "gradient_checkpointing": True}, ["--gradient_checkpointing", "--use_ema"]),
        ({"lora_rank": 4, "lora_alpha": 8.0}, ["--lora_rank=4", "--lora_alpha=8.0"]),
        ({"validation_prompts": ("a, b", "--c")}, ["--validation_prompts=a, b", "--validation_prompts=--c"]),
        (
            {"with_prior_preservation": True, "class_prompt": "a photo of dog"},
            ["--class_prompt=a photo of dog", "--with_prior_preservation"],
        ),
        ({"instance_prompt": 'it\'s "$HOME"\n`x`'}, ['--instance_prompt=it\'s "$$HOME"\n`x`']),
    ],
)
def test_settings_become_flags(changes, flags):
    argv = build(DREAMBOOTH.model_copy(update=changes)).argv
    assert [flag for flag in argv[11:] if flag not in WORKER_FLAGS] == flags


def test_the_environment_that_is_added():
    assert dict(build().env) == {
        "PYTHONPATH": "/mnt/project/project",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "PYTHONSAFEPATH": "sdjob",
        "OMP_NUM_THREADS": "4",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_SOCKET_IFNAME": LOOPBACK.interface,
        "NCCL_SOCKET_IFNAME": f"={LOOPBACK.interface}",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "30",
        "SDJOB_DEVICE_TIMEOUT": "900",
        "SDJOB_STOP_FILE": "/output/run/stop-0",
        "SDJOB_NOTES_DIR": "/output/run/notes-0",
    }


def test_several_nodes_whose_route_is_not_known_get_no_interface():
    env = build(cluster=Cluster(2, 1, "node-0:1234", 2)).env
    assert env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert not [name for name in env if name.endswith("SOCKET_IFNAME")]


@pytest.mark.parametrize(
    ("environ", "options", "name"),
    [
        ({}, {}, "sdjob"),
        ({"SLURM_JOB_ID": "123"}, {}, "123"),
        ({"SKYPILOT_TASK_ID": "a b/c,d"}, {}, "a-b-c-d"),
        ({"TRAINING_JOB_NAME": "dog-1"}, {}, "dog-1"),
        ({"SLURM_JOB_ID": "123"}, {"rendezvous_id": "mine"}, "mine"),
    ],
)
def test_the_meeting_of_several_nodes_has_the_name_of_the_job(environ, options, name):
    two = Cluster(2, 1, "node-0:1234", 2)
    assert f"--rdzv-id={name}" in build(cluster=two, environ=environ, **options).argv


def test_dollars_are_doubled_for_torchrun_which_halves_them():
    spec = DREAMBOOTH.model_copy(update={"instance_prompt": "$$ ${local_rank} $(a) $HOME"})
    argv = command.build(
        spec, Cluster(1, 0, None, 2), Host(Path("/p"), "python3", 8, {}), {}, LaunchOptions()
    ).argv
    (prompt,) = (word for word in argv if word.startswith("--instance_prompt="))
    assert Template(prompt).safe_substitute(local_rank=0) == "--instance_prompt=$$ ${local_rank} $(a) $HOME"


def test_what_the_user_set_stays():
    environ = {"OMP_NUM_THREADS": "3", "PYTHONPATH": "/mine", "HF_HUB_OFFLINE": "0"}
    env = build(environ=environ).env
    assert env["PYTHONPATH"] == "/mnt/project/project:/mine"
    assert "OMP_NUM_THREADS" not in env
    assert "HF_HUB_OFFLINE" not in env
    env = build(passed_on={"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "5"}).env
    assert (env["NCCL_DEBUG"], env["OMP_NUM_THREADS"]) == ("INFO", "5")


def test_threads_are_capped_and_processes_bound_where_the_machine_has_several_nodes():
    assert build(cores=64).env["OMP_NUM_THREADS"] == "8"
    assert build(hang_timeout=0).env["SDJOB_DEVICE_TIMEOUT"] == "7200"
    host = Host(Path("/p"), "python3", 64, {}, "node")
    plan = command.build(DREAMBOOTH, Cluster(1, 0, None, 2), host, {}, LaunchOptions())
    assert "--numa-binding=node" in plan.argv
    assert "--numa-binding=node" not in build(cores=64).argv


def test_segments_of_device_memory_grow_unless_the_user_has_set_the_allocator():
    on_gpu = DREAMBOOTH.model_copy(update={"device": "cuda"})
    assert build(on_gpu).env["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_ALLOC_CONF" not in build().env
    mine = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}
    assert "PYTORCH_ALLOC_CONF" not in build(on_gpu, environ=mine).env
    assert "PYTORCH_ALLOC_CONF" not in build(on_gpu, passed_on=mine).env


def test_more_processes_than_cores_get_one_thread_each():
    assert build(cores=1).env["OMP_NUM_THREADS"] == "1"


def test_torchruns_own_variables_do_not_reach_it():
    plan = build(environ={"PET_STANDALONE": "", "PET_NNODES": "2", "PETS": "kept", "A": "b"})
    assert plan.unset == ("PET_NNODES", "PET_STANDALONE")
    whole = plan.environment({"PET_STANDALONE": "", "PET_NNODES": "2", "PETS": "kept", "A": "b"})
    assert "PET_STANDALONE" not in whole
    assert (whole["PETS"], whole["A"], whole["PYTHONUNBUFFERED"]) == ("kept", "b", "1")


def test_the_shell_form_has_the_same_words():
    plan = build(
        DREAMBOOTH.model_copy(update={"instance_prompt": "it's $(touch pwned)\n"}), environ={"PET_X": "1"}
    )
    words = shlex.split(plan.shell())
    assert words[:3] == ["env", "-u", "PET_X"]
    assert tuple(words[-len(plan.argv) :]) == plan.argv
    assert words[3 : -len(plan.argv)] == [f"{name}={value}" for name, value in plan.env.items()]


def test_the_plan_is_a_value():
    assert build() == build()


def test_a_users_script_runs_instead_of_the_worker():
    script = Script(Path("/mnt/project/mine.py"), ("--lr=$LR", "x"))
    assert build(script=script).argv == (
        *build().argv[:9],
        *("-m", "sdjob.rank_output", "/mnt/project/mine.py"),
        "--lr=$$LR",
        "x",
    )


def test_restarts_are_those_of_torchrun():
    assert build(max_restarts=3).argv[3:9] == (
        "--nnodes=1",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file,keep_alive_interval=86400",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=2",
        "--max-restarts=3",
    )


@pytest.mark.parametrize(("device", "on_cpu"), [("cpu", {"ACCELERATE_USE_CPU": "true"}), ("cuda", {})])
def test_accelerate_starts_several_processes_itself(device, on_cpu):
    spec, cluster = DREAMBOOTH.model_copy(update={"device": device}), Cluster(2, 1, "node-0:1234", 4)
    plan = build(spec, cluster, launcher="accelerate", accelerate_config="/c.yaml", max_restarts=3)
    logs = "--log_dir=/dev/null"
    start = plan.argv[: plan.argv.index(logs) + 1]
    assert start[:4] == ("/usr/bin/python3", "-m", "accelerate.commands.launch", "--config_file=/c.yaml")
    assert {"--num_processes=8", "--mixed_precision=no"} < set(start)
    assert start[-2:] == ("--max_restarts=3", logs)
    assert plan.argv[len(start) :] == build(spec).argv[9:]
    assert {name: plan.env[name] for name in plan.env if name.startswith("ACCELERATE")} == on_cpu
    assert not any("restarts" in word for word in build(spec, cluster, launcher="accelerate").argv)
    assert not any("rdzv" in word for word in start) and "PET_LOCAL_ADDR" not in plan.env


def test_accelerate_meets_by_a_file_on_one_node():
    plan = build(cluster=Cluster(1, 0, None, 2), launcher="accelerate")
    assert {"--rdzv_backend=c10d", "--rdzv_conf=store_type=file,keep_alive_interval=86400"} < set(plan.argv)
    assert plan.env["PET_LOCAL_ADDR"] == "127.0.0.1"


def test_accelerate_leaves_a_single_process_to_torchrun():
    alone = Cluster(1, 0, None, 1)
    argv = build(cluster=alone, launcher="accelerate", max_restarts=3).argv
    start = argv.index("torch.distributed.run") - 1
    assert argv[1:4] == ("-m", "accelerate.commands.launch", "--cpu")
    assert argv[start:] == build(cluster=alone, max_restarts=3).argv[1:]


@pytest.mark.parametrize("name", [b"\xd5\xd5\xc6\xac", b"\xd5a 'b' \\ $c", "照片".encode(), b"plain"])
def test_a_pasted_command_has_the_bytes_of_every_name(name):
    plan = LaunchPlan(("printf", "%s", os.fsdecode(b"/mnt/" + name)), {}, ())
    printed = subprocess.run(["bash", "-c", plan.shell().encode()], capture_output=True, check=True).stdout
    assert printed == b"/mnt/" + name
    assert plan.shell().encode()  # can be shown and saved
