"""Tests of running the checks: mounts that never answer are reported, and nothing waits for them."""

import os
import subprocess
import sys
import threading
import time

import pytest

from sdjob.dataset import text_files
from sdjob.model import locate
from tests.sdlaunch.test_plan import found, prepare
from tests.sdlaunch.workspace import HOME, clean_environment

_HANGING = """
import runpy, sys, threading
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].replace("entrypoint.py", "project"))
from sdjob.dataset import images
images._opened = lambda source: threading.Event().wait()
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_mount_that_hangs_is_reported_and_not_waited_for(workspace, tmp_path, verb):
    """Reading an image blocks forever, as on a network mount whose server is gone."""
    begin = time.monotonic()
    command = [sys.executable, "-c", _HANGING, str(HOME / "entrypoint.py"), verb]
    variables = clean_environment(**workspace, check_timeout="1")
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - begin < 20
    assert done.returncode == 66
    text = done.stdout + done.stderr
    assert f"DATASET_DIR: {tmp_path}/dataset/images did not answer within 1 s" in text
    assert "Traceback" not in text


def test_a_model_whose_mount_hangs_is_reported(workspace, monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(locate, "open_listing", lambda path: answer.wait(60))
    begin = time.monotonic()
    (problem,) = prepare(workspace, check_timeout="0.5").problems
    answer.set()
    assert (problem.subject, problem.code) == ("MODEL_DIR", 66)
    assert problem.found == f"{workspace['MODEL_DIR']} did not answer within 0.5 s"
    assert time.monotonic() - begin < 10


def test_captions_that_hang_are_reported_as_well(workspace, tmp_path, monkeypatch):
    for number in range(5):
        (tmp_path / f"dataset/images/{number}.txt").write_text("a circle")
    answer = threading.Event()
    monkeypatch.setattr(text_files, "decoded", lambda *_: str(answer.wait(60)))
    begin = time.monotonic()
    job = prepare(workspace, recipe="text_to_image", check_timeout="0.5")
    answer.set()
    assert found(job) == [("DATASET_DIR", 66)]
    assert time.monotonic() - begin < 10


def test_captions_in_pipes_are_refused_without_a_wait(workspace, tmp_path):
    for number in range(5):
        os.mkfifo(tmp_path / f"dataset/images/{number}.txt")
    job = prepare(workspace, recipe="text_to_image")
    assert found(job)[0] == (f"{tmp_path}/dataset/images/0.txt", 66)
