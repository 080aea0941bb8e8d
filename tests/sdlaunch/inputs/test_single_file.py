"""The launcher on a model in one file: the plan, the exit codes, the room for its folder."""

import shutil
from types import SimpleNamespace

import pytest

from tests.sdlaunch.workspace import launch
from tests.support.launcher import found, prepare
from tests.support.single import SD_1, SD_2, original_shapes, sparse


@pytest.fixture
def one_file(workspace, tmp_path):
    """A model of full size instead of the folder."""
    shutil.rmtree(tmp_path / "model")
    tensors = original_shapes(SD_1)
    return sparse(tmp_path / "model/dreamy.safetensors", {**tensors, "model_ema.decay": (1,)})


def small(**variables):
    """Nothing about this machine's memory and disk is in question."""
    return {"lora_rank": "4", "resolution": "512", **variables}


def test_the_plan_of_a_file(workspace, one_file):
    job = prepare(workspace, **small())
    assert [problem for problem in job.problems if problem.code != 69] == []
    assert job.mounts["MODEL_DIR"]["uses"] == str(one_file)
    assert job.mounts["MODEL_DIR"]["found"] == "Stable Diffusion 1.x in one file, epsilon, 2.13 GB"
    assert f"--pretrained_model_name_or_path={one_file}" in job.launch.argv
    assert any("1 EMA tensors (model_ema.…) are ignored" in w for w in job.warnings)


@pytest.mark.parametrize(
    "variables", [{"MODEL_DIR": "{file}"}, {"MODEL_DIR": "{link}"}, {"model_name": "dreamy.safetensors"}]
)
def test_the_file_may_be_named(workspace, one_file, variables):
    link = one_file.parent / "mounted"
    link.symlink_to(one_file)
    named = {name: value.format(file=one_file, link=link) for name, value in variables.items()}
    job = prepare({**workspace, **named}, **small())
    assert job.mounts["MODEL_DIR"]["uses"] == str(link if "{link}" in variables.values() else one_file)
    assert job.mounts["MODEL_DIR"]["found"].startswith("Stable Diffusion 1.x in one file")


def test_its_exit_codes(workspace, one_file, tmp_path):
    sparse(one_file, original_shapes(SD_2))
    done = launch("check", **workspace, **small())
    assert done.returncode == 64
    assert "prediction_type: auto, and" in done.stdout + done.stderr
    assert "Set prediction_type=v_prediction for a model trained at 768 pixels" in done.stdout + done.stderr
    job = prepare(workspace, **small(prediction_type="v"))
    assert [code for _, code in found(job) if code != 69] == []
    assert job.settings["prediction_type"].value == "v_prediction"
    sparse(one_file, {"lora_unet_x.lora_up.weight": (4, 2)})
    done = launch("check", **workspace, **small())
    assert done.returncode == 66
    assert f"{one_file}: is a LoRA, not a model\n      → Mount its base model" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("free", "variables", "subjects"),
    [
        (2.0e9, {}, ["OUTPUT_DIR"]),
        (2.3e9, {}, []),
        (2.0e9, {"cache_dir": "/cache"}, ["cache_dir"]),
    ],
)
def test_the_converted_folder_needs_disk_space_too(
    workspace, one_file, monkeypatch, free, variables, subjects
):
    """2.13 GB, once; the rest of this LoRA takes megabytes."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free)))
    problems = [each for each in prepare(workspace, **small(**variables)).problems if each.code == 73]
    assert [problem.subject for problem in problems] == subjects
    assert all("the model as a folder, converted from the single file" in each.found for each in problems)
