"""`emit docker`, run by bash with a stub of docker."""

import os
import shlex

from tests.sdlaunch.emit.emitted import ENV, MOUNTS, NODES, SETTINGS, emit, run_with_stub, shellcheck
from tests.sdlaunch.workspace import HOME


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


def test_it_passes_the_linter():
    assert shellcheck(emit("docker", **SETTINGS, **NODES)) == ""
