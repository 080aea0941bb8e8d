"""Emitted jobs, read by the programs that they are for: SkyPilot, Kubeflow's models, kubectl, podman-compose."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.sdlaunch.emit.emitted import AWKWARD, NUMBERED, emit, undollared
from tests.sdlaunch.workspace import HOME

PROGRAMS = HOME / ".venv-emit/bin"
VALUES = {
    "instance_prompt": AWKWARD,
    "class_prompt": "no",
    "caption_column": "1e-5",
    "image_column": "0x10",
    "cache_dir": "/data/一只 狗 🐕",
    "class_data_dir": "${HOME}/$PATH/$(HOME)/$$x",
    "lr": "1e-5",
}


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """A job with folders that exist, as some programs demand."""
    folders = {f"{name.upper()}_DIR": tmp_path / f"a {name}" for name in ("model", "dataset", "output")}
    for folder in folders.values():
        folder.mkdir()
    return {name: str(path) for name, path in folders.items()} | VALUES | {"NPROC_PER_NODE": "2"}


def program(name: str) -> str:
    found = PROGRAMS / name
    if not found.exists():
        pytest.skip(f"{found} is missing; `make test-emit` makes it")
    return str(found)


def run(*command: str | Path, **environ: str) -> str:
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, **environ}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def written(folder: Path, text: str, name: str = "job.yaml") -> Path:
    path = folder / name
    path.write_text(text + "\n", encoding="utf-8")
    return path


def read(reader: str, folder: Path, *texts: str) -> list:
    """What the program of this reader makes of each text. Its state goes below the folder."""
    files = [written(folder, text, f"{number}.yaml") for number, text in enumerate(texts)]
    command = (program("python"), Path(__file__).with_name("readers.py"), reader, *files)
    quiet = {"SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "HOME": str(folder)}
    return json.loads(run(*command, **quiet))


def test_skypilot(variables, tmp_path):
    emitted = [emit("skypilot", **variables, **changes) for changes in (NUMBERED, {"device": "cpu"})]
    texts = [text.replace("NAME-OF-YOUR-BUCKET", "my-bucket") for text in emitted]
    on_gpus, on_cpu = read("skypilot", tmp_path, *texts)
    assert on_gpus == {
        "envs": VALUES | {"NPROC_PER_NODE": "2"},
        "nodes": 2,
        "run": "bash /mnt/project/train.sh",
        "files": {
            "/mnt/model": variables["MODEL_DIR"],
            "/mnt/dataset": variables["DATASET_DIR"],
            "/mnt/project": str(HOME),
        },
        "buckets": {"/output": "my-bucket"},
        "accelerators": {"A100": 2},
        "image": {"null": "docker:sd-finetune:cuda"},
    }
    assert (on_cpu["accelerators"], on_cpu["nodes"]) == (None, 1)


def test_a_train_job_is_one_of_kubeflow(variables, tmp_path):
    changes = (NUMBERED, {"device": "cpu"}, {"PROJECT_DIR": "/mine"})
    texts = [emit("kubernetes", **variables | changed).split("---\n")[-1] for changed in changes]
    jobs = [yaml.safe_load(text) for text in texts]
    assert read("kubeflow", tmp_path, *texts) == jobs
    for job in jobs:
        env = {each["name"]: undollared(each["value"]) for each in job["spec"]["trainer"]["env"]}
        assert VALUES.items() <= env.items()
    fields = ("numNodes", "terminationGracePeriodSeconds", "volumeMounts", "sizeLimit")
    unknown = [texts[0].replace(field, f"x{field}") for field in fields]
    assert jobs[0] not in read("kubeflow", tmp_path, *unknown)  # else the comparison would say nothing


def test_an_indexed_job_is_one_of_kubernetes(variables, tmp_path):
    """kubectl decodes strictly by type: a value that it takes for a number is refused."""
    if not (kubectl := shutil.which("kubectl")):
        pytest.skip("kubectl is missing; `make test-emit` installs it on Debian as root")
    text = emit("kubernetes", "--kind=job", **variables, **NUMBERED)
    job = written(tmp_path, text.split("---\n")[-1])
    listed = run(kubectl, "set", "env", "--local", "--list", "--filename", job)
    for name, value in VALUES.items():
        assert f"\n{name}={value.replace('$', '$$')}\n" in listed


@pytest.mark.parametrize("changes", [{}, {"device": "cpu"}])
def test_compose(variables, tmp_path, changes):
    file = written(tmp_path, emit("compose", **variables | changes), "compose.yaml")
    text = run(program("podman-compose"), "--file", file, "config", RUN_AS="1234")
    service = yaml.safe_load(text)["services"]["sdjob"]
    assert VALUES.items() <= service["environment"].items()
    assert service["user"] == "1234:0"
    assert {each["target"]: each["source"] for each in service["volumes"]} == {
        "/mnt/model": variables["MODEL_DIR"],
        "/mnt/dataset": variables["DATASET_DIR"],
        "/mnt/project": str(HOME),
        "/output": variables["OUTPUT_DIR"],
    }
