"""Which model and dataset a job uses, and what is proposed where there is none.

Tests of contents and `sdlaunch/inputs/mounts.py`.
"""

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
