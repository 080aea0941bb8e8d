"""Tests of running the checks: mounts that never answer are reported, and nothing waits for them."""

import os
import time

import pytest

from tests.sdlaunch.test_plan import found, prepare
from tests.sdlaunch.workspace import launch


@pytest.mark.parametrize("verb", ["check", "run"])
@pytest.mark.parametrize(
    ("file", "variable", "folder"),
    [
        ("model/tiny/model_index.json", "MODEL_DIR", "model"),
        ("dataset/images/0.png", "DATASET_DIR", "dataset/images"),
    ],
)
def test_a_mount_that_hangs_is_reported_and_not_waited_for(workspace, tmp_path, verb, file, variable, folder):
    """A pipe without a writer blocks its reader forever, as a network mount does whose server is gone."""
    (tmp_path / file).unlink()
    os.mkfifo(tmp_path / file)
    begin = time.monotonic()
    done = launch(verb, **workspace, check_timeout="1")
    assert time.monotonic() - begin < 20
    assert done.returncode == 66
    text = done.stdout + done.stderr
    assert f"{variable}: {tmp_path / folder} did not answer within 1 s" in text
    assert "Traceback" not in text


def test_captions_that_hang_are_reported_as_well(workspace, tmp_path):
    for number in range(5):
        os.mkfifo(tmp_path / f"dataset/images/{number}.txt")
    begin = time.monotonic()
    job = prepare(workspace, recipe="text_to_image", check_timeout="0.5")
    assert found(job) == [("DATASET_DIR", 66)]
    assert time.monotonic() - begin < 10
