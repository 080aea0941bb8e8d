"""Dry runs of benchmarks/gpu on the CPU, and what they predict."""

import json
import os
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu import attention_kernels, gradients, prediction, speed, verify
from benchmarks.gpu.budget import Budget, too_late
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
    assert sum(row["case"] == "torch_ddp bf16" for row in compared) == 2  # of one rank, and of two
    assert {"torch_ddp no", "torch_ddp bf16", "fsdp no", "fsdp bf16"} <= {row["case"] for row in compared}
    for row in compared:
        assert row["norm_off"] <= 0.1 and row["loss_off"] <= row["tolerance"]
        assert row["gradients_off"] <= 0.1 and row["worst_off"] <= 0.3


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


def budget(seconds: float, times: list[float]) -> Budget:
    """Its clock shows these times, one at each look."""
    return Budget(seconds, {"eager": 10.0, "compiled": 50.0}, iter(times).__next__)


def test_a_row_starts_only_if_the_longest_of_its_kind_would_end_in_time():
    of_call = budget(100, [0, 45, 60, 70, 89])
    assert of_call.why_not("compiled") == ""
    assert of_call.why_not("compiled") == "it takes about 50 s, 40 s are left"
    of_call.learn("eager", 15)
    of_call.learn("eager", 12)
    assert of_call.why_not("eager") == ""
    assert of_call.why_not("eager") == "it takes about 15 s, 11 s are left"


def test_a_row_that_is_ended_counts_as_failed_by_its_own_limit_alone():
    assert too_late(limit=200, left=300)["outcome"] == "failed"
    assert too_late(limit=200, left=30)["outcome"] == "no time left"


def test_a_later_call_repeats_only_rows_without_time(tmp_path):
    table = speed._Table(tmp_path, "a GPU", budget(5, [0, 1]))
    table.measure("late", 8, "eager", lambda seconds: {})
    table = speed._Table(tmp_path, "a GPU", budget(60, [0] * 9))
    table.measure("early", 8, "eager", lambda seconds: {"outcome": "ok", "images_per_second": seconds / 30})
    assert [
        (row["name"], row["outcome"]) for row in speed._Table(tmp_path, "a GPU", budget(9, [0])).rows
    ] == [("early", "ok")]
    (page,) = tmp_path.glob("*.md")
    assert "| early | 8 | 2.0 |" in page.read_text()


def test_a_lost_gradient_is_seen_however_small_its_share():
    wanted = {"large": torch.ones(1000), "small": torch.full((10,), 0.5), "none": torch.zeros(3)}
    found = {**wanted, "small": torch.zeros(10)}
    difference = gradients.compared(found, wanted)
    assert difference.name == "small" and difference.worst == pytest.approx(0.87, abs=0.01)
    assert difference.all == pytest.approx(0.05, abs=0.01)
    assert difference.worst > max(verify.OF_WORST.values())


@pytest.mark.parametrize(
    "error",
    [subprocess.CalledProcessError(-11, "python", "", "CUDA error"), subprocess.TimeoutExpired("python", 9)],
)
def test_an_attention_kernel_that_crashes_or_hangs_does_not_end_the_other_parts(
    monkeypatch, capsys, tmp_path, error
):
    def fails(*_):
        raise error

    monkeypatch.setattr(attention_kernels, "in_process", fails)
    budget = Budget(100, {"attention": 1})
    call = verify._Call(tmp_path, tmp_path, "cuda", budget, apart=False, quick=False)
    assert not verify._part(call, "attention")
    said = capsys.readouterr().out
    assert said.startswith("attention: Command") and (error.stderr or "") in said


def test_every_case_is_there_once_and_compiling_is_left_to_gpus():
    names = [verify._name(case) for case in verify._cases("torch_ddp", "cuda", quick=False)]
    assert names.count("torch_ddp bf16 compile=blocks") == 1 and len(set(names)) == len(names)
    assert all("compile" not in case for case in verify._cases("torch_ddp", "cpu", quick=False))


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


BASE = ("torch", "transformers", "peft", "accelerate", "pyarrow", "pandas", "pillow", "tensorboard")


def requirements(package: str) -> set[str]:
    lines = (Requirement(line) for line in metadata.requires(package) or ())
    names = (each.name for each in lines if each.marker is None or each.marker.evaluate({"extra": ""}))
    return {canonicalize_name(name) for name in names}


def test_with_what_is_carried_everything_can_be_imported():
    """On a machine that has the packages of BASE and what these require."""
    there, new = set(), set(BASE)
    while new:
        there |= new
        new = {name for package in new for name in requirements(package)} - there
    lines = (GPU / "requirements-carry.txt").read_text().splitlines()
    carried = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    # Colossal-AI's are those of another torch; diffusers has importlib_metadata for old versions of Python.
    needed = {name for package in carried - {"colossalai"} for name in requirements(package)}
    assert needed - carried - there == {"importlib-metadata"}
