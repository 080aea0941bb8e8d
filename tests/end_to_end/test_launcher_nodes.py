"""Two nodes, really run: two launchers that meet over c10d, with the losses of one node."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sdlaunch.place import HOME, clean_environment
from tests.support.worker import losses

STEPS = 4


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def variables(eps_model, captioned):
    """The job, as a task form would say it; without the number of processes."""
    return {
        "MODEL_DIR": str(eps_model),
        "DATASET_DIR": str(captioned),
        "recipe": "text_to_image",
        "resolution": "32",
        "device": "cpu",
        "lr": "1e-3",
        "num_train_step": str(STEPS),
        "logging_steps": "1",
        "dataloader_num_workers": "0",
    }


def launch(**variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HOME / "entrypoint.py")],
        env=clean_environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*launchers: subprocess.Popen[str]) -> None:
    """All must end with 0; the first that does not takes the others along, with the words of all."""
    try:
        deadline = time.monotonic() + 180
        while any(each.poll() is None for each in launchers) and time.monotonic() < deadline:
            if any(each.returncode for each in launchers):
                break
            time.sleep(0.2)
    finally:
        for each in launchers:
            for _ in range(2):  # the second signal stops at once
                each.terminate()
                time.sleep(0.3)
    words = [each.communicate(timeout=60)[0] for each in launchers]
    assert [each.returncode for each in launchers] == [0] * len(launchers), "\n".join(words)


def test_two_nodes_give_the_losses_of_one(variables, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    finish(launch(**variables, OUTPUT_DIR=str(one), NPROC_PER_NODE="1", batch_size="2"))
    # In the words of PAI-DLC, where WORLD_SIZE and RANK are those of nodes.
    cluster = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    nodes = {**variables, **cluster, "OUTPUT_DIR": str(two), "NPROC_PER_NODE": "1", "batch_size": "1"}
    finish(*(launch(**nodes, RANK=str(rank)) for rank in (0, 1)))
    assert len(losses(two)) == STEPS
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert {path.name for path in (two / "logs").glob("node-*.log")} == {"node-0.log", "node-1.log"}
