"""`emit`: the job of other places, read back by what reads it there: a shell, YAML, SLURM's comments."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.sdlaunch.place import HOME, clean_environment, launch

AWKWARD = 'it\'s a "sks" dog\n$(touch pwned) `touch pwned` ${HOME} $HOME $$ \\ %s: # ünï'
MOUNTS = {"MODEL_DIR": "/a b/model", "DATASET_DIR": "/data,set", "OUTPUT_DIR": "/out$put"}
SETTINGS = {**MOUNTS, "instance_prompt": AWKWARD, "lr": "1e-4", "resolution": "512", "NPROC_PER_NODE": "2"}
ENV = {"NPROC_PER_NODE": "2", "instance_prompt": AWKWARD, "lr": "1e-4"}
NODES = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node-0", "MASTER_PORT": "1234"}
NUMBERED = {"NNODES": "2"}  # is enough where the platform says the rest
STUB = "#!/usr/bin/env python3\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ)]))\n"


def emit(*arguments, **variables):
    done = launch("emit", *arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def run_with_stub(program, text, folder):
    """(arguments, environment) that a program of this name is given when bash runs the text."""
    stub = folder / program
    stub.write_text(STUB)
    stub.chmod(0o755)
    environ = clean_environment()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    done = subprocess.run(
        ["bash"],
        input=text,
        env={**environ, "PATH": f"{folder}:{environ['PATH']}"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not list(folder.rglob("pwned"))
    return json.loads(done.stdout)


def undollared(text):
    assert "$" not in text.replace("$$", "")
    return text.replace("$$", "$")


def test_docker(tmp_path):
    words, _ = run_with_stub("docker", emit("docker", **SETTINGS), tmp_path)
    assert words == [
        "run",
        "--rm",
        f"--user={os.getuid()}:0",
        "--gpus=2",
        "--shm-size=8g",
        "--stop-timeout=35",
        *("--mount", "type=bind,source=/a b/model,target=/mnt/model,readonly"),
        *("--mount", 'type=bind,"source=/data,set",target=/mnt/dataset,readonly'),
        *("--mount", f"type=bind,source={HOME},target=/mnt/project,readonly"),
        *("--mount", "type=bind,source=/out$put,target=/output"),
        *(word for name, value in sorted(ENV.items()) for word in ("--env", f"{name}={value}")),
        *("sd-finetune:cuda", "bash", "/mnt/project/train.sh"),
    ]


def test_docker_has_one_option_a_line():
    lines = emit("docker", **{**SETTINGS, "instance_prompt": "a dog"}).splitlines()
    assert lines[0] == "docker run --rm \\"
    assert all(line.endswith(" \\") and line.startswith("  --") for line in lines[1:-1])
    assert lines[-1] == "  sd-finetune:cuda bash /mnt/project/train.sh"


@pytest.mark.parametrize("target", ["docker", "compose"])
def test_where_nobody_numbers_the_nodes_their_numbers_are_asked_for(target):
    done = launch("emit", target, **SETTINGS, **NUMBERED)
    assert done.returncode == 64
    assert "NODE_RANK: not set" in done.stderr and "MASTER_ADDR: not set" in done.stderr


def test_docker_without_devices_and_with_another_project(tmp_path):
    project = tmp_path / "mine"
    (project / "x").mkdir(parents=True)
    (project / "x" / "a.py").write_text("")
    words = shlex.split(
        emit(
            "docker",
            **MOUNTS,
            **NODES,
            PROJECT_DIR=str(project),
            script=str(project / "x" / "a.py"),
            device="cpu",
            image="me/it:1",
            shm_size="512m",
        )
    )
    assert not any(word.startswith("--gpus") for word in words)
    assert {"--network=host", "--shm-size=512m", "script=/mnt/project/x/a.py"} <= set(words)
    assert {"PROJECT_DIR=/mnt/project", *(f"{name}={value}" for name, value in NODES.items())} <= set(words)
    assert f"type=bind,source={HOME},target=/opt/sdjob,readonly" in words
    assert words[-3:] == ["me/it:1", "bash", "/opt/sdjob/train.sh"]


def test_compose():
    service = yaml.safe_load(emit("compose", **SETTINGS))["services"]["sdjob"]
    assert {name: undollared(value) for name, value in service.pop("environment").items()} == ENV
    assert [(each["source"], each["target"], each["read_only"]) for each in service.pop("volumes")] == [
        ("/a b/model", "/mnt/model", True),
        ("/data,set", "/mnt/dataset", True),
        (str(HOME), "/mnt/project", True),
        ("/out$$put", "/output", False),
    ]
    device = {"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}
    assert service == {
        "image": "sd-finetune:cuda",
        "user": "${RUN_AS:-10001}:0",
        "command": ["bash", "/mnt/project/train.sh"],
        "shm_size": "8g",
        "stop_grace_period": "35s",
        "deploy": {"resources": {"reservations": {"devices": [device]}}},
    }


def literal(env):
    return {each["name"]: undollared(each["value"]) for each in env if "value" in each}


def test_kubernetes_trainjob():
    job = yaml.safe_load(emit("kubernetes", **SETTINGS, **NUMBERED))
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer = job["spec"]["trainer"]
    assert literal(trainer.pop("env")) == {"instance_prompt": AWKWARD, "lr": "1e-4"}
    assert trainer == {
        "image": "sd-finetune:cuda",
        "command": ["bash", "/mnt/project/train.sh"],
        "numNodes": 2,
        "numProcPerNode": 2,
        "resourcesPerNode": {"limits": {"nvidia.com/gpu": 2}},
    }
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert (node["name"], pod["terminationGracePeriodSeconds"]) == ("node", 35)
    assert pod["volumes"][0] == {"name": "model", "hostPath": {"path": "/a b/model"}}
    claim = {"name": "output", "persistentVolumeClaim": {"claimName": "sdjob-output"}}
    assert pod["volumes"][3] == claim  # nodes that write into one folder
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
    assert pod["volumes"][-1] == shm
    assert pod["containers"][0]["volumeMounts"][3] == {
        "name": "output",
        "mountPath": "/output",
        "readOnly": False,
    }


def test_kubernetes_job_on_two_nodes():
    service, job = yaml.safe_load_all(emit("kubernetes", "--kind=job", **SETTINGS, **NUMBERED))
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [64, 66, 69, 73]}}
    pod = spec["template"]["spec"]
    assert (pod["restartPolicy"], pod["subdomain"], pod["terminationGracePeriodSeconds"]) == (
        "Never",
        service["metadata"]["name"],
        35,
    )
    (container,) = pod["containers"]
    there = {"NNODES": "2", "MASTER_ADDR": "sdjob-0.sdjob", "MASTER_PORT": "29400"}
    assert literal(container["env"]) == ENV | there
    assert container["env"][-1]["name"] == "NODE_RANK"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 2}}


def test_slurm(tmp_path):
    text = emit("slurm", **SETTINGS, **NUMBERED)
    words, environ = run_with_stub("srun", text, tmp_path)
    assert words == ["--kill-on-bad-exit=1", "bash", str(HOME / "train.sh")]
    assert {name: environ[name] for name in (*ENV, *MOUNTS)} == {**ENV, **MOUNTS}
    assert environ["PROJECT_DIR"] == str(HOME)
    assert "NNODES" not in environ
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "#!/bin/bash",
        "#SBATCH --job-name=sdjob",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --signal=TERM@35",
        "#SBATCH --requeue",
    ]


def test_skypilot():
    assert yaml.safe_load(emit("skypilot", **SETTINGS, **NUMBERED)) == {
        "name": "sdjob",
        "num_nodes": 2,
        "resources": {"image_id": "docker:sd-finetune:cuda", "accelerators": "A100:2"},
        "envs": ENV,
        "file_mounts": {
            "/mnt/model": "/a b/model",
            "/mnt/dataset": "/data,set",
            "/mnt/project": str(HOME),
            "/output": {"name": "NAME-OF-YOUR-BUCKET", "mode": "MOUNT_CACHED"},
        },
        "run": "bash /mnt/project/train.sh",
    }


def shellcheck(text: str) -> str:
    """What the linter says of a bash text; that nothing is expanded within single quotes is meant."""
    linter = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [linter, "--shell=bash", "--exclude=SC2016", "-"], input=text, capture_output=True, text=True
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("target", ["docker", "slurm"])
def test_emitted_shell_texts_pass_the_linter(target):
    assert shellcheck(emit(target, **SETTINGS, **NODES)) == ""


@pytest.mark.parametrize(
    "script", [HOME / "train.sh", *sorted((HOME / "docker").glob("*.sh"))], ids=lambda path: path.name
)
def test_shell_scripts_pass_the_linter(script):
    assert shellcheck(script.read_text()) == ""


def test_the_linter_finds_something():
    assert "SC2086" in shellcheck("cp $1 /output\n")


def test_only_what_differs_is_said():
    text = emit("docker", **MOUNTS, lr="5e-6", batch_size="1", precision="auto", NPROC_PER_NODE="auto")
    assert "--env" not in text
    assert "--gpus=all" in text


@pytest.mark.parametrize("arguments", [["emit"], ["emit", "podman"], ["emit", "kubernetes", "--kind=pod"]])
def test_a_target_that_is_not_known(arguments):
    done = launch(*arguments, **MOUNTS)
    assert done.returncode == 64
    assert "Traceback" not in done.stdout + done.stderr


def test_wrong_settings_are_refused():
    done = launch("emit", "docker", **MOUNTS, lr="-1")
    assert done.returncode == 64
    assert "lr: found '-1'" in done.stderr
    assert done.stdout == ""


def test_secrets_stay_where_they_are():
    text = emit("docker", **MOUNTS, MY_TOKEN="hf_abcdefgh", instance_prompt="hf_abcdefgh")
    assert "hf_abcdefgh" not in text


@pytest.mark.parametrize("variables", [SETTINGS, SETTINGS | NODES, {**MOUNTS, "device": "cpu"}])
def test_the_indexed_job_is_valid_for_kubernetes(variables):
    """Against the OpenAPI schema of this Kubernetes version, where an unknown field is an error."""
    documents = list(yaml.safe_load_all(emit("kubernetes", "--kind=job", **variables)))
    for document in documents:
        kubernetes_validate.validate(document, "1.33", strict=True)
    documents[-1]["spec"]["template"]["spec"]["subdomane"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError, match="subdomane"):
        kubernetes_validate.validate(documents[-1], "1.33", strict=True)


@pytest.mark.parametrize("variables", [SETTINGS, SETTINGS | NODES, {**MOUNTS, "device": "cpu"}])
def test_the_compose_file_is_valid(variables, tmp_path):
    def complaints(text: str) -> str:
        file = tmp_path / "compose.yaml"
        file.write_text(text)
        checker = Path(sys.executable).with_name("check-jsonschema")
        command = [checker, "--builtin-schema", "vendor.compose-spec", file]
        done = subprocess.run(command, capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stdout

    text = emit("compose", **variables)
    assert complaints(text) == ""
    assert "stop_grace_periodd" in complaints(text.replace("stop_grace_period", "stop_grace_periodd"))
