"""Which model and dataset a job uses, and what is proposed where there is none.

Tests of contents and `sdlaunch/inputs/mounts.py`.
"""

import shutil

import pytest

from tests.support.launcher import prepare

NAME = "someone/tiny-diffusion"


def remedies(workspace, **variables):
    return [problem.remedy for problem in prepare(workspace, **variables).problems]


@pytest.mark.parametrize("setting", ["model_name", "dataset_name"])
def test_the_hub_is_a_remedy_for_a_name_that_nothing_local_has(workspace, setting):
    (remedy,) = remedies(workspace, **{setting: NAME})
    assert remedy.endswith(f"; or set offline=0 to download {NAME} from the hub.")


@pytest.mark.parametrize(
    "variables",
    [
        {"MODEL_DIR": "/nonexistent", "DATASET_DIR": "/nonexistent"},
        {"model_name": "tinny", "dataset_name": "imagges"},
        {"model_name": "/nonexistent/tiny", "dataset_name": "/nonexistent/images"},
        {"model_name": "a/b/c", "dataset_name": "./images/x"},
        {"PROJECT_DIR": "/nonexistent", "lr": "fast", "resume": "must", "plugin": "gemini"},
    ],
)
def test_the_hub_is_no_remedy_for_what_it_cannot_have(workspace, variables):
    found = remedies(workspace, **variables)
    assert found and not [remedy for remedy in found if "offline" in remedy]


def test_the_hub_is_no_remedy_for_a_model_that_is_there_and_broken(workspace, tmp_path):
    broken = tmp_path / "model" / NAME
    broken.mkdir(parents=True)
    (broken / "model_index.json").write_text("{")
    (tmp_path / "dataset" / NAME).mkdir(parents=True)
    found = remedies(workspace, model_name=NAME, dataset_name=NAME)
    assert len(found) == 2 and not [remedy for remedy in found if "offline" in remedy]


def test_the_hub_is_a_remedy_for_that_name_alone(workspace):
    named = [
        problem.subject
        for problem in prepare(workspace, model_name=NAME, dataset_name="imagges").problems
        if "offline=0" in problem.remedy
    ]
    assert named and all("model" in subject for subject in named)


def test_a_vae_below_the_mount_of_the_model(workspace, tmp_path):
    shutil.copytree(tmp_path / "model/tiny/vae", tmp_path / "model/other-vae")
    job = prepare(workspace, vae_name_or_path="other-vae")
    assert job.problems == ()
    assert f"--vae={tmp_path}/model/other-vae" in job.launch.argv
    (problem,) = prepare(workspace, vae="missing").problems
    assert (problem.code, problem.subject) == (66, f"{tmp_path}/model/missing")


def test_a_mounted_cache_of_the_hub_needs_no_download(workspace, tmp_path):
    repository = tmp_path / f"model/models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    shutil.copytree(tmp_path / "model/tiny", repository / "snapshots/abc")
    job = prepare(workspace, model_name=NAME, offline="0")
    assert (job.problems, job.awaited) == ((), ())
    assert f"--pretrained_model_name_or_path={repository}/snapshots/abc" in job.launch.argv


def test_the_plan_counts_the_layers_of_a_lora(workspace):
    job = prepare(workspace, lora_rank="2")
    assert any(line.startswith("LoRA: rank 2 on 32 layers of unet (8 to_k, ") for line in job.arithmetic)
    (problem,) = prepare(workspace, lora_rank="2", lora_target_modules="to_q,to_kv").problems
    assert (problem.code, problem.found) == (64, "'to_kv' matches no layer of the U-Net")
