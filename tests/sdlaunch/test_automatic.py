"""What `auto` becomes in a plan, with the reason; the worker decides again, since it knows images and nodes."""

import threading

import pytest

from sdlaunch import automatic
from sdlaunch.preflight import estimates
from tests.sdlaunch.test_plan import prepare


@pytest.mark.parametrize(
    ("settings", "value", "source"),
    [
        ({"center_crop": "1"}, "memory", "auto: each image is used 80 times"),
        ({}, "auto", "auto: center_crop=0: only if no image has to be cropped"),
        ({"num_train_step": "5"}, "no", "auto: 5 images to encode, for 5 uses in all steps"),
        ({"center_crop": "1", "cache_latents": "disk"}, "disk", "environment"),
        ({"cache_latents": "0"}, "no", "environment"),
    ],
)
def test_the_plan_says_whether_images_are_encoded_once_and_why(workspace, settings, value, source):
    job = prepare(workspace, **settings)
    assert job.problems == ()
    found = job.settings["cache_latents"]
    assert found.value == value and found.source.startswith(source)
    flags = [each for each in job.launch.argv if each.startswith("--cache_latents")]
    assert flags == ([f"--cache_latents={value}"] if "cache_latents" in settings else [])


def test_the_plan_says_why_prompts_of_a_trained_encoder_are_not_encoded_once(workspace):
    settings = prepare(workspace, train_text_encoder="1").settings
    found = settings["cache_text_embeddings"]
    assert (found.value, found.source) == ("no", "auto: the text encoder is trained")
    assert prepare(workspace).settings["cache_text_embeddings"].value == "memory"


def test_a_disk_that_does_not_answer_is_not_waited_for(workspace, monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(automatic, "_PATIENCE", 0.05)
    monkeypatch.setattr(estimates, "free_at", lambda folder: answer.wait(60))
    assert automatic._free(workspace["OUTPUT_DIR"]) is None
    answer.set()


def test_small_memory_sends_caches_to_the_disk(workspace, monkeypatch):
    monkeypatch.setattr(automatic.machine, "host_memory", lambda: 1000)
    found = prepare(workspace, center_crop="1").settings["cache_latents"]
    assert (found.value, found.source) == ("disk", "auto: each image is used 80 times")
