"""Mounts that are missing, empty, unreadable or a file, in a container: messages and exit codes."""

import os
import shutil
from pathlib import Path

import pytest


def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "mount"
    folder.mkdir(mode=0o755, parents=True)
    return folder


def closed(tmp_path: Path) -> Path:
    """A folder that only root can read."""
    folder = empty(tmp_path)
    (folder / "train.sh").touch()
    folder.chmod(0o700)
    return folder


def file(tmp_path: Path) -> Path:
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "mount"
    path.write_text("not a folder")
    path.chmod(0o644)
    return path


def test_nothing_mounted(box):
    ended = box.run("check")
    assert ended.code == 66
    assert "MODEL_DIR: /mnt/model" in ended.text
    assert "DATASET_DIR: /mnt/dataset" in ended.text
    assert "OUTPUT_DIR: /output" in ended.text
    assert ended.text.rstrip().endswith("exit code 66 (a mount, the model or the data is wrong).")
    assert "Traceback" not in ended.text


@pytest.mark.parametrize(
    "spoil", [None, empty, closed, file], ids=lambda each: getattr(each, "__name__", "missing")
)
@pytest.mark.parametrize("mount", ["/mnt/model", "/mnt/dataset"])
def test_an_input_that_cannot_be_used(box, mounts, tmp_path, mount, spoil):
    del mounts[mount]
    if spoil:
        mounts[mount] = spoil(tmp_path)
    ended = box.run("check", mounts=mounts)
    subject = {"/mnt/model": "MODEL_DIR", "/mnt/dataset": "DATASET_DIR"}[mount]
    assert ended.code == 66
    assert ended.text.count("→") == 1, ended.text
    assert mount in ended.text
    assert spoil is empty or f"{subject}: {mount}" in ended.text, ended.text


@pytest.mark.parametrize("spoil", [empty, closed, file], ids=lambda each: each.__name__)
def test_a_project_that_cannot_be_used(box, mounts, tmp_path, spoil):
    ended = box.run("check", mounts={**mounts, "/mnt/project": spoil(tmp_path)})
    assert ended.code == 66
    assert "PROJECT_DIR: /mnt/project" in ended.text
    assert ended.text.count("→") == 1, ended.text


def test_without_a_mounted_project_that_of_the_image_runs(box, mounts):
    ended = box.run("check", mounts=mounts)
    assert (ended.code, ended.text.strip()) == (0, "no problems: the job can start")


@pytest.mark.parametrize("words", [("plan",), ("bash", "/mnt/project/train.sh", "plan")], ids=" ".join)
def test_a_mounted_project_replaces_that_of_the_image(box, mounts, project, words):
    ended = box.run(*words, mounts={**mounts, "/mnt/project": project})
    assert ended.code == 0, ended.text
    assert [line.split()[1] for line in ended.text.splitlines() if line.startswith("  PROJECT_DIR")][
        -1
    ] == "/mnt/project"
    assert "PYTHONPATH=/mnt/project/project" in ended.text


def test_output_that_is_missing(box, mounts):
    del mounts["/output"]
    ended = box.run("check", mounts=mounts)
    assert ended.code == 73
    assert "OUTPUT_DIR: /output" in ended.text


def of_another_user(tmp_path: Path) -> Path:
    folder = empty(tmp_path)
    os.chown(folder, UID + 1, UID + 1)
    return folder


UID = 10001


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (closed, "cannot be written by user 10001"),
        (file, "is a file"),
        (of_another_user, "cannot be written by user 10001"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_output_that_cannot_be_written(box, mounts, tmp_path, spoil, expected):
    for verb in ("check", "run"):
        ended = box.run(verb, mounts={**mounts, "/output": spoil(tmp_path / verb)})
        assert ended.code == 73
        assert f"OUTPUT_DIR: /output {expected}" in ended.text


def test_output_that_is_read_only(box, mounts, output):
    del mounts["/output"]
    ended = box.run("check", mounts=mounts, options=[f"--volume={output}:/output:ro"])
    assert ended.code == 73
    assert "OUTPUT_DIR: /output is mounted read-only" in ended.text


def test_output_that_is_too_small(box, mounts):
    del mounts["/output"]
    ended = box.run("check", mounts=mounts, options=["--tmpfs=/output:size=4m,mode=1777"])
    assert ended.code == 73
    assert "OUTPUT_DIR: 4" in ended.text and "needed" in ended.text


def test_a_model_that_was_cut_off(box, mounts, demo, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(demo / "model", model)
    weights = next(model.rglob("unet/*.safetensors"))
    os.truncate(weights, weights.stat().st_size // 2)
    ended = box.run("check", mounts={**mounts, "/mnt/model": model})
    assert ended.code == 66
    assert f"unet/{weights.name}" in ended.text


def test_any_uid_may_run_it(box, mounts, output):
    output.chmod(0o775)
    os.chown(output, 0, 0)
    ended = box.run("check", mounts=mounts, options=["--user=54321:0"])
    assert ended.code == 0, ended.text
