"""`emit slurm` under a real SLURM, on two nodes."""

import contextlib
import json
import os
import signal
import time

import pytest

from sdjob import protocol
from sdjob.protocol import Channel, Heartbeat
from tests.cluster.conftest import THREADS, emitted
from tests.sdlaunch.workspace import HOME
from tests.support.worker import losses

pytestmark = pytest.mark.cluster
FINISHED = ("COMPLETED", "0:0")


@contextlib.contextmanager
def frozen(script):
    """Stop the process of rank 0 while the block runs."""
    beat = Heartbeat.read(Channel.of_node(script.parent / "output/run", 0).notes, 0)
    assert beat
    os.kill(beat.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(beat.pid, signal.SIGCONT)


def assert_resumed(job, script, undisturbed):
    """The job saves, is requeued once, and finishes with the losses of an undisturbed run."""
    assert job.end() == FINISHED, job.text
    assert "stopped (exit code 75" in job.text
    assert job.shown("Restarts") == "1", job.text
    assert "resume: from step" in job.text, job.text
    assert losses(script.parent / "output") == undisturbed


def test_two_nodes_train_with_the_losses_of_one(job, script, undisturbed):
    assert job.end() == FINISHED, job.text
    output = script.parent / "output"
    assert losses(output) == undisturbed
    assert (output / "checkpoint/model_index.json").is_file()
    assert {path.name for path in (output / "logs").glob("node-*.log")} == {"node-0.log", "node-1.log"}
    assert job.shown("Restarts") == "0"


def test_a_preempted_job_resumes(job, slurm, script, undisturbed):
    job.until("train    1/")
    slurm.call("scontrol", "requeue", job.number)
    assert_resumed(job, script, undisturbed)


def test_a_job_that_saves_slowly_after_a_signal_resumes(job, slurm, script, undisturbed):
    """The first node that ends makes SLURM send SIGTERM to the other: it is part of the same request to stop."""
    job.until("train    1/")
    with frozen(script):
        slurm.call("scancel", "--signal=USR1", job.number)
        time.sleep(protocol.ONE_REQUEST + 0.5)
    assert_resumed(job, script, undisturbed)
    assert "SIGUSR1: saving and stopping" in job.text


def test_at_its_time_limit_a_job_saves_and_continues_in_another_allocation(job, slurm, script, undisturbed):
    job.until("train    1/")
    with frozen(script):  # SLURM looks every 30 s
        slurm.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=1")
        job.until("SIGTERM: saving and stopping")
        slurm.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")
    assert_resumed(job, script, undisturbed)
    assert "TIME LIMIT" not in job.text  # it left before SLURM ended it


def test_a_cancelled_job_saves_and_is_not_requeued(job, slurm, script):
    job.until("train    1/")
    slurm.call("scancel", job.number)
    assert job.end()[0] == "CANCELLED"
    job.until("stopped (exit code 75")
    assert job.shown("Restarts") == "0"
    [checkpoint] = (script.parent / "output/checkpoint").glob("checkpoint-*")
    assert json.loads((checkpoint / "state.json").read_text())["step"] > 0


def test_a_script_without_srun_is_refused(slurm, script):
    lines = [line for line in script.read_text().splitlines() if line.startswith(("#", "export "))]
    script.write_text("\n".join([*lines, f"bash {HOME}/train.sh check"]))
    job = slurm.submit(script, HOME=str(script.parent), **THREADS)
    assert job.end() == ("FAILED", "64:0"), job.text
    assert "srun" in job.text


def test_a_launcher_gets_the_cores_and_devices_of_all_of_its_processes(slurm, tmp_path, mounts):
    script = emitted(tmp_path, **mounts, NPROC_PER_NODE="2", dataloader_num_workers="0")
    probe = tmp_path / "train.sh"
    probe.write_text('echo "node $SLURM_NODEID: $(nproc) cores, devices $CUDA_VISIBLE_DEVICES"\n')
    script.write_text(script.read_text().replace(f"{HOME}/train.sh", str(probe)))
    job = slurm.submit(script)
    assert job.end() == FINISHED, job.text
    assert sorted(job.text.splitlines()) == [f"node {n}: 2 cores, devices 0,1" for n in (0, 1)]
