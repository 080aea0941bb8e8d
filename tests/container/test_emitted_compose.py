"""`emit compose`, run by a compose program: a whole job, stopped and started again."""

import contextlib
import io
import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from sdlaunch import cli
from tests.container import engine as engines
from tests.sdlaunch.workspace import clean_environment
from tests.support.worker import losses

PROGRAM = engines.HOME / ".venv-emit/bin/podman-compose"
PROMPT = 'a "sks" circle\'s $HOME $(touch /output/pwned) 1e-5 # 圆'
JOB = {
    "device": "cpu",
    "NPROC_PER_NODE": "2",
    "instance_prompt": PROMPT,
    "resolution": "64",
    "lr": "2e-4",
    "logging_steps": "1",
    "num_train_step": "60",
    "checkpointing_steps": "1000",
    "dataloader_num_workers": "1",
}


@pytest.fixture
def compose(engine, image, project, demo, output, tmp_path):
    """Run podman-compose with the emitted file, without a network, as the other containers of these tests."""
    if not engine.is_podman or not PROGRAM.exists():
        pytest.skip(f"it takes podman and {PROGRAM}, which `make test-container` makes")
    folders = {
        "MODEL_DIR": str(demo / "model"),
        "DATASET_DIR": str(demo / "dataset"),
        "OUTPUT_DIR": str(output),
    }
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert cli.main(["emit", "compose"], clean_environment(**folders, **JOB, image=image), project) == 0
    here = tmp_path / "compose"
    here.mkdir()
    (here / "compose.yaml").write_text(text.getvalue(), encoding="utf-8")
    (here / "offline.yaml").write_text(yaml.safe_dump({"services": {"sdjob": {"network_mode": "none"}}}))

    def start(*arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [PROGRAM, "--file=compose.yaml", "--file=offline.yaml", *arguments],
            env=dict(os.environ) | dict(engine.env),
            cwd=here,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    yield start
    start("down", "--timeout=5").communicate(timeout=120)


def test_a_job_is_stopped_and_resumes(compose, output: Path):
    up = ("up", "--no-build", "--exit-code-from=sdjob")
    first = compose(*up)
    until = time.monotonic() + 180
    while not (metrics := output / "run/metrics.jsonl").exists() or "loss" not in metrics.read_text():
        assert first.poll() is None and time.monotonic() < until, first.communicate()[0]
        time.sleep(0.2)
    stopping = compose("stop")
    stopping.communicate(timeout=120)
    text = first.communicate(timeout=120)[0]
    assert stopping.returncode == 0
    assert "exit code 75" in text, text
    again = compose(*up)
    text = again.communicate(timeout=300)[0]
    assert again.returncode == 0, text
    assert "resum" in text, text
    assert len(losses(output)) == 60
    plan = yaml.safe_load((output / "run/plan.json").read_text())
    assert plan["settings"]["instance_prompt"]["value"] == PROMPT
    assert not (output / "pwned").exists()
