"""`emit slurm` under a real SLURM, on two nodes."""

import json

import pytest

from tests.cluster.conftest import THREADS
from tests.support.worker import losses

pytestmark = pytest.mark.cluster
FINISHED = ("COMPLETED", "0:0")


def test_two_nodes_train_with_the_losses_of_one(job, script, undisturbed):
    assert job.end() == FINISHED, job.text
    output = script.parent / "output"
    assert losses(output) == undisturbed
    assert (output / "checkpoint/model_index.json").is_file()
    assert {path.name for path in (output / "logs").glob("node-*.log")} == {"node-0.log", "node-1.log"}
    assert job.shown("Restarts") == "0"


@pytest.mark.parametrize(
    "command",
    [
        ("scontrol", "requeue"),
        pytest.param(
            ("scancel", "--signal=USR1"),
            marks=pytest.mark.xfail(reason="SIGUSR1 is not a request to stop", strict=False),
        ),
    ],
    ids=" ".join,
)
def test_a_preempted_job_resumes(job, slurm, script, undisturbed, command):
    job.until("step    1/")
    slurm.call(*command, job.number)
    assert job.end() == FINISHED, job.text
    assert job.shown("Restarts") == "1"
    assert "resume: from step" in job.text
    assert losses(script.parent / "output") == undisturbed


def test_at_its_time_limit_a_job_saves_and_continues_in_another_allocation(job, slurm, script, undisturbed):
    job.until("step    1/")
    slurm.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=1")
    job.until("SIGTERM: saving and stopping")
    slurm.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")
    assert job.end() == FINISHED, job.text
    assert "stopped (exit code 75" in job.text
    assert "TIME LIMIT" not in job.text  # it left before SLURM ended it
    assert job.shown("Restarts") == "1"
    assert "resume: from step" in job.text
    assert losses(script.parent / "output") == undisturbed


def test_a_cancelled_job_saves_and_is_not_requeued(job, slurm, script):
    job.until("step    1/")
    slurm.call("scancel", job.number)
    assert job.end()[0] == "CANCELLED"
    job.until("stopped (exit code 75")
    assert job.shown("Restarts") == "0"
    [checkpoint] = (script.parent / "output/checkpoint").glob("checkpoint-*")
    assert json.loads((checkpoint / "state.json").read_text())["step"] > 0


@pytest.mark.xfail(reason="in a batch script SLURM_PROCID is set without a step, too", strict=False)
def test_a_script_without_srun_is_refused(slurm, script):
    start = next(line for line in script.read_text().splitlines() if line.startswith("srun "))
    forgot = start[start.index("bash ") :].split(" ||")[0]
    script.write_text(f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=1\n{forgot} check\n")
    job = slurm.submit(script, HOME=str(script.parent), **THREADS)
    assert job.end() == ("FAILED", "64:0"), job.text
    assert "srun" in job.text
