"""Dry runs of benchmarks/gpu on the CPU, and what they predict."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu import prediction, speed
from sdjob.settings.compatibility import Topology, problems
from sdjob.settings.flags import parse
from tests.sdlaunch.workspace import HOME

GPU = HOME / "benchmarks" / "gpu"
COSTS = prediction.read()


def dry_run(script: str, output: Path, *arguments: str) -> list[dict]:
    environ = {**os.environ, "RESULTS": str(output), "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", GPU / script, *arguments], check=True, env=environ, capture_output=True)
    return [row for file in sorted(output.glob("*.json")) for row in json.loads(file.read_text())["rows"]]


@pytest.mark.long
def test_verify_compares_losses_and_gradients(tmp_path):
    rows = dry_run("verify.sh", tmp_path, "torch_ddp", "fsdp", "two_ranks", "--quick", "--seconds", "3000")
    compared = [row for row in rows if row["outcome"] != "refused"]
    assert {row["outcome"] for row in compared} == {"right"}
    assert {"torch_ddp no", "torch_ddp bf16", "fsdp no", "fsdp bf16"} <= {row["case"] for row in compared}
    for row in compared:
        assert row["norm_off"] <= 0.1 and row["loss_off"] <= row["tolerance"]


@pytest.mark.long
def test_speed_measures_each_row_once_and_keeps_what_is_there(tmp_path):
    rows = dry_run("speed.sh", tmp_path, "lora", "peer")
    assert [row["name"] for row in rows] == [
        "LoRA of rank 8",
        "LoRA of rank 8, best",
        "diffusers script: tiny",
    ]
    assert all(row["outcome"] in ("ok", "refused") for row in rows)
    assert dry_run("speed.sh", tmp_path, "lora") == rows


def test_no_row_is_started_when_the_time_is_over(tmp_path):
    table = speed._Table(tmp_path, "a GPU")
    table.measure("late", 8, 0.0, dict)
    table.measure("early", 8, 1e12, lambda: {"outcome": "ok", "images_per_second": 2.0})
    assert [row["outcome"] for row in speed._Table(tmp_path, "a GPU").rows] == ["ok"]
    (page,) = tmp_path.glob("*.md")
    assert "| early | 8 | 2.0 |" in page.read_text()


def test_techniques_raise_the_predicted_speed():
    """As the ladder climbs: the bound grows with each technique, and is not far from what is known of an H200."""
    plain = COSTS["sd14 full fp32 64"].bound(64, "flash", compiled=False)
    cost = COSTS["sd14 full bf16 64"]
    ladder = [
        plain,
        cost.bound(64, "flash", compiled=False),
        cost.bound(64, "cudnn", compiled=False),
        cost.bound(64, "cudnn", compiled=True),
        cost.bound(64, "fa4", compiled=True),
    ]
    assert ladder == sorted(ladder)
    assert plain == pytest.approx(134, rel=0.05)
    assert cost.flops / 64 == pytest.approx(2.47e12, rel=1e-3)


def test_every_row_of_the_ladder_has_a_prediction():
    for part in ("ladder", "batches", "sd2", "lora"):
        for row in speed.rows(part, on_gpu=True):
            assert row.predicted, row.name


def test_every_row_has_settings_that_a_job_accepts():
    hopper = Topology("cuda", 1, bf16=True, fp16=True)
    for part in (each for each in speed.PARTS if each != "peer"):
        for row in (*speed.rows(part, on_gpu=True), *speed.rows(part, on_gpu=False)):
            spec = parse(speed.flags(row))
            assert problems(spec, hopper) == [], row.name
            assert spec.attention == row.settings.get("attention", "auto")


def test_what_is_carried_is_pinned_as_in_the_image():
    def pins(path: Path) -> set[str]:
        return {line for line in path.read_text().splitlines() if "==" in line}

    carried = pins(GPU / "requirements-carry.txt")
    assert len(carried) >= 10
    assert carried <= pins(HOME / "docker/requirements.txt") | pins(HOME / "docker/requirements-colossal.txt")
