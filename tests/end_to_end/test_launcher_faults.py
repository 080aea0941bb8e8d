"""Real runs of two processes under the launcher, and what is done to them: each fault ends in its class."""

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.sdlaunch.workspace import clean_environment
from tests.support import forked
from tests.support.launcher import ENTRYPOINT, Launched
from tests.support.worker import losses

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


@pytest.fixture
def job(eps_model, captioned, tmp_path):
    """Starts a job of forked ranks, or of torchrun; whatever is left of it when the test ends is killed."""
    started: list[Launched] = []

    def start(output: Path = tmp_path / "output", *, torchrun: bool = False, **variables: str) -> Launched:
        workspace = {"MODEL_DIR": str(eps_model), "DATASET_DIR": str(captioned), "OUTPUT_DIR": str(output)}
        environ = clean_environment(**{**workspace, **SETTINGS, **variables})
        options = {} if torchrun else {"preexec_fn": forked.launcher(environ)}
        started.append(Launched(ENTRYPOINT, output, environ, **options))
        return started[-1]

    yield start
    for each in started:
        each.end_at_once()
        each.process.communicate(timeout=30)


def test_stops_and_a_killed_rank_lose_nothing(job):
    """A rank killed and restarted, stopped in a step, stopped during a checkpoint: in the end it finishes."""
    first = job(torchrun=True, max_restarts="1", checkpointing_steps="20", dataloader_num_workers="1")
    saved = _saved(first.until("saved "))
    first.signal_rank(1, signal.SIGKILL)
    assert _saved(first.until("resuming from")) >= saved
    first.until("/100000")  # a step, and not a line that only speaks of one
    launcher = psutil.Process(first.process.pid)
    for number in (signal.SIGUSR1, signal.SIGTERM):  # to all processes, as SLURM does
        for process in [*launcher.children(recursive=True), launcher]:
            process.send_signal(number)
    text = first.end(75)
    assert "the workers saved and ended" in text
    (stopped_at,) = first.checkpoints()
    kept = f"stopped: {first.output}/checkpoint/{stopped_at} is kept; the same command continues the job"
    assert text.splitlines()[-1] == f"{kept}; open {first.output}/report.html"

    second = job(checkpointing_steps="1")
    assert stopped_at in second.until("resuming from")
    assert _seen_while_saving(second.output)
    second.process.terminate()
    assert "the workers saved and ended" in second.end(75)
    (stopped_at,) = second.checkpoints()
    assert not (second.output / "failure.json").exists()

    steps = str(int(stopped_at[-6:]) + 20)
    third = job(num_train_step=steps)
    assert stopped_at in third.until("resuming from")
    assert f"finished: {steps} steps" in third.end(0)
    assert not (third.output / "failure.json").exists()
    assert (third.output / "checkpoint" / "model_index.json").exists()


def _saved(line: str) -> str:
    """The checkpoint that a line tells of."""
    return line.rpartition("/")[2].strip()


def _seen_while_saving(output: Path, seconds: float = 30) -> bool:
    """Waits until a checkpoint is being written."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if list((output / "checkpoint").glob(".checkpoint-*.tmp")):
            return True
    return False


@pytest.fixture(scope="module")
def undisturbed(eps_model, captioned, tmp_path_factory):
    """The losses of a run that nothing happens to."""
    output = tmp_path_factory.mktemp("undisturbed")
    workspace = {"MODEL_DIR": str(eps_model), "DATASET_DIR": str(captioned), "OUTPUT_DIR": str(output)}
    environ = clean_environment(**{**workspace, **SETTINGS, **KILLED})
    Launched(ENTRYPOINT, output, environ, preexec_fn=forked.launcher(environ)).end(0)
    return losses(output)


KILLED = {"num_train_step": "80", "checkpointing_steps": "20", "logging_steps": "1"}


@pytest.mark.long
def test_launcher_and_torchrun_killed_at_once(job, undisturbed):
    """Nothing is left of them, and the next start gives the losses of an undisturbed run."""
    first = job(**KILLED)
    first.until("saved ")
    launcher = psutil.Process(first.process.pid)
    family = [launcher, *launcher.children(recursive=True)]  # launcher, torchrun, ranks
    assert len(family) == 4
    for process in family[:2]:
        process.kill()
    first.process.communicate(timeout=30)
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert first.process.returncode == -signal.SIGKILL
    second = job(**KILLED)
    second.until("resuming from")
    assert "finished: 80 steps" in second.end(0)
    assert losses(second.output) == undisturbed


def test_a_rank_that_is_killed(job):
    run = job()
    run.until("train    1/")
    run.signal_rank(1, signal.SIGKILL)
    last = run.end(70).splitlines()[-1]
    assert last.startswith("failed: ") and last.endswith(f"; open {run.output}/report.html")
    assert run.failure["class"] == "killed from outside"
    assert run.failure["root_rank"] == 1
    assert run.failure["step"] >= 1


def test_a_hang_is_explained(job):
    run = job(hang_timeout="5")
    run.until("train    1/")
    run.signal_rank(1, signal.SIGSTOP)
    run.end(70)
    failure = run.failure
    assert (failure["class"], failure["root_rank"]) == ("hang", 1)
    assert failure["step"] >= 1
    # Heartbeats are throttled: the stopped rank may have left its stage before the first step.
    assert re.search(r"\(hang_timeout\); last: (.*, )?train$", failure["evidence"][0])
    assert "rank 1: gave no stacks; it is stopped" in failure["evidence"]
    assert "in train_steps" in failure["traceback"]  # where rank 0 waits for rank 1
    assert not _processes_with(str(run.output))


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_one_node_listens_on_the_loopback_interface_only(job, launcher):
    run = job(torchrun=True, launcher=launcher)
    run.until("train    1/")
    launcher = psutil.Process(run.process.pid)
    processes = [launcher, *launcher.children(recursive=True)]
    open_ports = [each for one in processes for each in one.net_connections() if each.status == "LISTEN"]
    assert len(open_ports) >= 3  # the store, and gloo in each rank
    assert {each.laddr.ip for each in open_ports} == {"127.0.0.1"}


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


def test_a_image_that_cannot_be_read_is_no_reason_to_try_again(job, captioned, tmp_path):
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
    run.until("train    1/")
    with (small_disk / "somebody else's").open("wb", buffering=0) as file:
        file.write(bytes(shutil.disk_usage(small_disk).free - 200_000))
    run.end(73)
    assert run.failure["class"] == "output cannot hold the result"
    assert run.failure["problems"][0]["subject"] == "OUTPUT_DIR"
    assert not [name for name in run.checkpoints() if name.startswith(".")]
