"""Real runs of two processes under the launcher, and what is done to them: each fault ends in its class."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sdlaunch.place import HOME, clean_environment

SETTINGS = {
    "recipe": "text_to_image",
    "resolution": "32",
    "NPROC_PER_NODE": "2",
    "device": "cpu",
    "lr": "1e-4",
    "dataloader_num_workers": "0",
    "checkpointing_steps": "30",
    "num_train_step": "100000",
    "checkpoints_total_limit": "1",
}


class Job:
    """A run of the launcher, read line by line."""

    def __init__(self, output: Path, environ: dict[str, str]) -> None:
        self.output = output
        self.process = subprocess.Popen(
            [sys.executable, str(HOME / "entrypoint.py")],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, word: str) -> str:
        """Reads up to a line with this word, and returns the line."""
        assert self.process.stdout
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if word in line:
                return line
        raise AssertionError(f"{word!r} never came:\n{''.join(seen)}")

    def signal_rank(self, rank: int, signum: int) -> None:
        os.kill(int((self.output / "run" / "notes-0" / f"alive-{rank}").read_text()), signum)

    def end(self, code: int) -> str:
        """The rest of what people see; the code must be this."""
        text, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == code, text
        assert "Traceback" not in text
        return text

    @property
    def failure(self):
        return json.loads((self.output / "failure.json").read_text())

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.output / "checkpoint").iterdir())


@pytest.fixture
def job(eps_model, captioned, tmp_path):
    """Starts a job; whatever is left of it when the test ends is killed."""
    started: list[Job] = []

    def start(output: Path = tmp_path / "output", **variables: str) -> Job:
        place = {"MODEL_DIR": str(eps_model), "DATASET_DIR": str(captioned), "OUTPUT_DIR": str(output)}
        started.append(Job(output, clean_environment(**{**place, **SETTINGS, **variables})))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            for _ in range(2):  # the second signal takes the workers along
                each.process.terminate()
                time.sleep(0.5)
        each.process.communicate(timeout=30)


def test_stops_and_a_killed_rank_lose_nothing(job):
    """Stopped in a step, stopped during a checkpoint, a rank killed and restarted: in the end it finishes."""
    first = job()
    first.until("step    1/")
    first.process.terminate()
    assert "the workers saved and ended" in first.end(75)
    (stopped_at,) = first.checkpoints()

    second = job(checkpointing_steps="1")
    assert stopped_at in second.until("resuming from")
    assert _seen_while_saving(second.output)
    second.process.terminate()
    assert "the workers saved and ended" in second.end(75)
    (stopped_at,) = second.checkpoints()
    assert not (second.output / "failure.json").exists()

    steps = str(int(stopped_at[-6:]) + 60)
    third = job(max_restarts="1", checkpointing_steps="20", num_train_step=steps)
    assert stopped_at in third.until("resuming from")
    saved = third.until("saved ").rpartition("/")[2].strip()
    third.signal_rank(1, signal.SIGKILL)
    again = third.until("resuming from").rpartition("/")[2].strip()
    assert again >= saved
    assert f"finished: {steps} steps" in third.end(0)
    assert not (third.output / "failure.json").exists()
    assert (third.output / "checkpoint" / "model_index.json").exists()


def _seen_while_saving(output: Path, seconds: float = 30) -> bool:
    """Waits until a checkpoint is being written."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if list((output / "checkpoint").glob(".checkpoint-*.tmp")):
            return True
    return False


def test_a_rank_that_is_killed(job):
    run = job()
    run.until("step    1/")
    run.signal_rank(1, signal.SIGKILL)
    run.end(70)
    assert run.failure["class"] == "killed from outside"
    assert run.failure["root_rank"] == 1


def test_a_hang_is_explained(job):
    run = job(hang_timeout="20")
    run.until("step    1/")
    run.signal_rank(1, signal.SIGSTOP)
    run.end(70)
    failure = run.failure
    assert (failure["class"], failure["root_rank"]) == ("hang", 1)
    assert "rank 1: gave no stacks; it is stopped" in failure["evidence"]
    assert "in train_steps" in failure["traceback"]  # where rank 0 waits for rank 1
    assert not _processes_with(str(run.output))


def _processes_with(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def test_a_loss_that_is_no_number(job):
    run = job(lr="1", max_grad_norm="0", adam_weight_decay="1e36", checkpointing_steps="5")
    assert "Lower lr" in run.end(70)
    assert run.failure["class"] == "diverged"
    assert run.failure["problems"][0]["subject"] in ("loss", "weights")


def test_a_picture_that_cannot_be_read_is_no_reason_to_try_again(job, captioned, tmp_path):
    data = shutil.copytree(captioned, tmp_path / "data")
    (data / "4.png").write_bytes((data / "4.png").read_bytes()[:60])
    run = job(DATASET_DIR=str(data), verify_images="none", max_restarts="2")
    text = run.end(66)
    assert str(data / "4.png") in text
    assert text.count("starting from the beginning") == 1
    assert run.failure["class"] == "bad input"


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 16 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up(job, small_disk):
    run = job(small_disk / "output", checkpointing_steps="60")
    run.until("step    1/")
    with (small_disk / "somebody else's").open("wb", buffering=0) as file:
        file.write(bytes(shutil.disk_usage(small_disk).free - 200_000))
    run.end(73)
    assert run.failure["class"] == "output cannot hold the result"
    assert run.failure["problems"][0]["subject"] == "OUTPUT_DIR"
    assert not [name for name in run.checkpoints() if name.startswith(".")]
