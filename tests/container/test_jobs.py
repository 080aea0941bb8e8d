"""Whole jobs in containers: finished, stopped and resumed, out of memory, on two nodes."""

import hashlib
import json
from pathlib import Path

from tests.support.worker import losses

# One short job of the embedded pipeline.
SHORT = {
    "recipe": "dreambooth",
    "resolution": "64",
    "batch_size": "1",
    "lr": "2e-4",
    "num_train_step": "6",
    "logging_steps": "1",
    "dataloader_num_workers": "1",
    "OMP_NUM_THREADS": "1",  # torchrun's default for several processes; here two nodes use the same cores
}
AWKWARD = """a "sks" circle's $(touch /output/pwned) `touch /output/pwned`; touch /output/pwned"""


def digests(folder: Path) -> dict[str, str]:
    """The hash of every file below."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_job_finishes_and_changes_only_its_output(box, mounts, demo, output):
    before = digests(demo)
    job = {**SHORT, "NPROC_PER_NODE": "2", "instance_prompt": AWKWARD}
    ended = box.run(mounts=mounts, **job)
    assert ended.code == 0, ended.text
    assert digests(demo) == before
    assert len(losses(output)) == 6
    assert (output / "checkpoint/model_index.json").is_file()
    assert {path.name for path in output.iterdir()} >= {
        "checkpoint",
        "tensorboard",
        "logs",
        "run",
        "report.html",
    }
    assert not (output / "pwned").exists()
    plan = json.loads((output / "run/plan.json").read_text())
    assert plan["settings"]["instance_prompt"]["value"] == AWKWARD
    assert {path.stat().st_uid for path in output.rglob("*")} == {10001}


def test_a_stopped_job_resumes(box, mounts, output):
    job = {**SHORT, "NPROC_PER_NODE": "2", "num_train_step": "60", "checkpointing_steps": "1000"}
    job["instance_prompt"] = "a sks circle"
    name = box.start(mounts=mounts, **job)
    box.until(name, "train    1/60")
    box.engine.call("stop", "-t", "60", name)
    assert box.wait(name) == 75, box.logs(name)
    first = box.logs(name)
    again = box.run(mounts=mounts, **job)
    assert again.code == 0, again.text
    assert "resum" in again.text, again.text
    assert "exit code 75" in first or "start the same command again" in first, first
    assert len(losses(output)) == 60


def test_too_little_memory_is_reported(box, mounts, output):
    job = {**SHORT, "NPROC_PER_NODE": "2", "instance_prompt": "a sks circle"}
    ended = box.run(mounts=mounts, options=["--memory=450m", "--memory-swap=450m"], **job)
    assert ended.code == 71, ended.text
    failure = json.loads((output / "failure.json").read_text())
    assert failure["class"] == "out of memory"
    assert "the kernel killed" in failure["evidence"][0], failure
    assert failure["evidence"][0] in ended.text


def test_two_containers_train_as_two_nodes(box, mounts, nodes):
    job = {**SHORT, "NPROC_PER_NODE": "1", "instance_prompt": "a sks circle"}
    job |= {"NNODES": "2", "MASTER_ADDR": nodes[0].address, "MASTER_PORT": "29500"}
    names = [
        box.start(mounts=mounts, options=node.options, **job, NODE_RANK=str(rank))
        for rank, node in enumerate(nodes)
    ]
    codes = [box.wait(name) for name in names]
    assert codes == [0, 0], "\n".join(box.logs(name) for name in names)
    assert len(losses(mounts["/output"])) == 6
    assert {path.name for path in (mounts["/output"] / "logs").glob("node-*.log")} == {
        "node-0.log",
        "node-1.log",
    }
