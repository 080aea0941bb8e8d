"""A SLURM cluster for all tests here, a job to run in it, and the losses of the same job on one node."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import slurm as engine
from tests.cluster.slurm import Job, Slurm
from tests.sdlaunch.workspace import HOME, clean_environment, launch
from tests.support.worker import losses

# One short job of the embedded pipeline, on two processes.
SHORT = {
    "device": "cpu",
    "recipe": "dreambooth",
    "instance_prompt": "a sks circle",
    "resolution": "64",
    "batch_size": "1",
    "lr": "2e-4",
    "num_train_step": "40",
    "logging_steps": "1",
    "checkpointing_steps": "1000",
    "dataloader_num_workers": "1",
}
THREADS = {"OMP_NUM_THREADS": "1"}  # torchrun's default for several processes per node


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """The cluster; the tests are skipped without one, with the reason."""
    if reason := engine.missing():
        pytest.skip(f"no SLURM: {reason}")
    # Not below pytest's own folder: the path of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, engine.started(Path(folder)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The embedded model and data."""
    from sddemo.write_demo import write_demo

    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return {"MODEL_DIR": str(folder / "model"), "DATASET_DIR": str(folder / "dataset")}


@pytest.fixture(scope="session")
def undisturbed(mounts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the same job with both processes on one node, without SLURM."""
    output = tmp_path_factory.mktemp("undisturbed")
    environ = {**SHORT, **THREADS, **mounts, "OUTPUT_DIR": str(output), "NPROC_PER_NODE": "2"}
    done = subprocess.run(
        ["bash", str(HOME / "train.sh")],
        env=clean_environment(**environ),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(output)


@pytest.fixture
def script(mounts: dict[str, str], tmp_path: Path) -> Path:
    """The batch script of the job, for two nodes; its output folder is next to it."""
    (tmp_path / "output").mkdir()
    return emitted(tmp_path, **SHORT, **mounts, NPROC_PER_NODE="1")


def emitted(folder: Path, **variables: str) -> Path:
    """The batch script of a job of two nodes with these variables."""
    path = folder / "job.sh"
    done = launch("emit", "slurm", OUTPUT_DIR=str(folder / "output"), NNODES="2", **variables)
    assert done.returncode == 0, done.stderr
    path.write_text(done.stdout)
    return path


@pytest.fixture
def job(slurm: Slurm, script: Path) -> Iterator[Job]:
    """The submitted job; it is cancelled if the test has not waited for its end."""
    job = slurm.submit(script, "--time=10", HOME=str(script.parent), **THREADS)
    yield job
    slurm.call("scancel", "--quiet", job.number)
    job.end()
