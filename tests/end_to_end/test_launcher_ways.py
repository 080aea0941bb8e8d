"""One job, started in several ways: by the launcher, through accelerate, by its own printed command, on two nodes.

Each gives the losses of the others.
"""

import socket
import time
from pathlib import Path

import pytest

from tests.sdlaunch.workspace import clean_environment
from tests.support import forked
from tests.support.launcher import ENTRYPOINT, Launched, pasted, prepare
from tests.support.worker import losses

STEPS = 4
AWKWARD = 'it\'s a "sks" dog\n$(touch pwned) `touch pwned` ${HOME} $$ \\ %s {x}: # ünï  '


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def variables(eps_model, instance):
    """The job, as a task form would say it; without the number of processes."""
    return {
        "MODEL_DIR": str(eps_model),
        "DATASET_DIR": str(instance),
        "instance_prompt": AWKWARD,
        "resolution": "32",
        "device": "cpu",
        "lr": "1e-3",
        "num_train_step": str(STEPS),
        "logging_steps": "1",
        "dataloader_num_workers": "0",
    }


def run(output: Path, **variables: str) -> Launched:
    return Launched(ENTRYPOINT, output, clean_environment(**variables, OUTPUT_DIR=str(output)))


@pytest.fixture(scope="module")
def wanted(variables, tmp_path_factory):
    """The losses of one process with two images per step."""
    output = tmp_path_factory.mktemp("one") / "out put"
    environ = clean_environment(**variables, OUTPUT_DIR=str(output), NPROC_PER_NODE="1", batch_size="2")
    Launched(ENTRYPOINT, output, environ, preexec_fn=forked.launcher(environ)).end(0)
    assert len(losses(output)) == STEPS
    return pytest.approx(losses(output), rel=1e-5)


def test_another_prompt_gives_other_losses(variables, wanted, tmp_path):
    environ = clean_environment(
        **{**variables, "instance_prompt": AWKWARD.strip() + " x"},
        OUTPUT_DIR=str(tmp_path),
        NPROC_PER_NODE="1",
        batch_size="2",
    )
    Launched(ENTRYPOINT, tmp_path, environ, preexec_fn=forked.launcher(environ)).end(0)
    assert losses(tmp_path) != wanted


def test_the_printed_command_pasted_into_a_shell(variables, wanted, tmp_path):
    job = prepare(variables, OUTPUT_DIR=str(tmp_path / "out put"), NPROC_PER_NODE="1", batch_size="2")
    assert "torch.distributed.run" in job.launch.argv
    assert f"finished: {STEPS} steps" in pasted(job, tmp_path)
    assert losses(tmp_path / "out put") == wanted
    assert not list(tmp_path.rglob("pwned"))


def test_accelerate_with_two_processes(variables, wanted, tmp_path):
    started = run(tmp_path, **variables, launcher="accelerate", NPROC_PER_NODE="2", batch_size="1")
    text = started.end(0)
    assert "2 × cpu; fp32" in text
    assert losses(tmp_path) == wanted
    assert "\r" not in text and "\x1b" not in text
    stages = ("check  ", "import\n", "load\n", "train    1/4  ", "save\n", "export\n", "result: ")
    at = [f"\n{text}".index(f"\n{start}") for start in stages]
    assert at == sorted(at)
    assert text.splitlines()[-1] == f"result: {tmp_path / 'checkpoint'}; open {tmp_path / 'report.html'}"


def test_two_nodes(variables, wanted, tmp_path):
    """Two launchers that meet over c10d, in the words of PAI-DLC, where WORLD_SIZE and RANK are those of nodes."""
    cluster = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    nodes = {**variables, **cluster, "NPROC_PER_NODE": "1", "batch_size": "1"}
    launchers = [run(tmp_path, **nodes, RANK=str(rank)) for rank in (0, 1)]
    try:
        deadline = time.monotonic() + 180
        while any(each.process.poll() is None for each in launchers) and time.monotonic() < deadline:
            if any(each.process.returncode for each in launchers):
                break
            time.sleep(0.2)
    finally:
        for each in launchers:
            each.end_at_once()
    words = [each.process.communicate(timeout=60)[0] for each in launchers]
    assert [each.process.returncode for each in launchers] == [0, 0], "\n".join(words)
    assert losses(tmp_path) == wanted
    assert {path.name for path in (tmp_path / "logs").glob("node-*.log")} == {"node-0.log", "node-1.log"}
