"""The performance table: commands, measurements, and rows that fail.

Tests of benchmark, `sdtrain/tools/benchmark_case.py` and `sdtrain/tools/synthetic.py`.
"""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel

from sdjob.children.start import ending_with_this
from sdtrain.tools import benchmark, benchmark_case, synthetic

FAST = ["--model=tiny", "--plugins=none", "--steps=3", "--skip_steps=1", "--device=cpu"]


@pytest.fixture
def here(monkeypatch):
    """Rows are measured in this process, without its imports; the commands are kept."""
    commands = []

    def run(command, **_):
        start = ending_with_this([])
        assert command[: len(start)] == start
        command = command[len(start) :]
        commands.append(command)
        code = benchmark_case.main(command[command.index("sdtrain.tools.benchmark_case") + 1 :])
        return subprocess.CompletedProcess(command, code, stderr="")

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    return commands


def table(output):
    (path,) = output.glob("*.json")
    return json.loads(path.read_text())["rows"], path.with_suffix(".md").read_text()


def test_rows_are_measured_and_saved(here, tmp_path):
    assert benchmark.main([*FAST, "--batch_sizes=1,2", f"--output={tmp_path}"]) == 0
    rows, page = table(tmp_path)
    assert [(row["strategy"], row["batch_size"], row["outcome"]) for row in rows] == [
        ("Traditional", 1, "ok"),
        ("Traditional", 2, "ok"),
    ]
    for row in rows:
        details = row["details"]
        assert row["speedup"] == 1.0
        assert row["images_per_second"] == pytest.approx(row["batch_size"] / details["seconds_per_step"])
        assert 0 < details["final_loss"] < 10
    assert "| Strategy | #GPU | Batch Size | GPU RAM (GB) | images/s | speedup |" in page
    assert f"- torch: {torch.__version__}" in page


def test_rows_with_caches_compute_the_same_and_are_compared_with_one_another(here, tmp_path):
    assert benchmark.main([*FAST, "--batch_sizes=2", "--cached=both", f"--output={tmp_path}"]) == 0
    (plain, cached), _ = table(tmp_path)
    assert (plain["strategy"], cached["strategy"]) == ("Traditional", "Traditional cached")
    assert cached["details"]["final_loss"] == pytest.approx(plain["details"]["final_loss"], rel=1e-5)
    assert cached["speedup"] == 1.0
    assert "--cache_latents=memory" in here[1] and "--cache_latents=memory" not in here[0]


def test_no_row_is_started_when_the_time_is_over_and_what_was_measured_is_kept(here, tmp_path, monkeypatch):
    measured = benchmark._measured

    def slow(*given):
        assert not list(tmp_path.glob("*.json")) or len(table(tmp_path)[0]) < 2
        monkeypatch.setattr(benchmark.time, "monotonic", lambda: 1e12)
        return measured(*given)

    monkeypatch.setattr(benchmark, "_measured", slow)
    arguments = [*FAST, "--batch_sizes=1,2", "--seconds=60", f"--output={tmp_path}"]
    assert benchmark.main(arguments) == 0
    assert [row["outcome"] for row in table(tmp_path)[0]] == ["ok", "no time left"]
    monkeypatch.undo()
    first = table(tmp_path)[0][0]
    monkeypatch.setattr(benchmark, "_measured", lambda row, *_: benchmark.replace(row, images_per_second=3.0))
    assert benchmark.main([*arguments, "--resume"]) == 0
    assert [row["images_per_second"] for row in table(tmp_path)[0]] == [first["images_per_second"], 3.0]
    assert benchmark.main([*arguments, "--resume", "--steps=9"]) == 0
    assert [row["images_per_second"] for row in table(tmp_path)[0]] == [3.0, 3.0], "of other conditions"


def test_a_row_without_memory_is_marked_and_the_next_is_measured(here, tmp_path, monkeypatch):
    whole = synthetic.batches

    def batches(parts, spec, rank):
        if spec.train_batch_size == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(parts, spec, rank)

    monkeypatch.setattr(synthetic, "batches", batches)
    assert benchmark.main([*FAST, "--batch_sizes=4,1", f"--output={tmp_path}"]) == 0
    rows, page = table(tmp_path)
    assert [row["outcome"] for row in rows] == ["oom", "ok"]
    assert "| Traditional | 1 | 4 | – | oom | – |" in page


def test_each_strategy_runs_in_its_own_processes_and_refusals_are_named(here, tmp_path):
    plugins = "--plugins=low_level_zero:zero_stage=2"
    assert benchmark.main([*FAST, plugins, "--batch_sizes=1", "--nproc=3", f"--output={tmp_path}"]) == 0
    traditional, zero = here
    assert traditional[:3] == [sys.executable, "-m", "sdtrain.tools.benchmark_case"]
    assert zero[:5] == [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    assert "--zero_stage=2" in zero and "--plugin=low_level_zero" in zero
    rows, _ = table(tmp_path)
    assert (rows[1]["strategy"], rows[1]["devices"], rows[1]["outcome"]) == (
        "low_level_zero zero_stage=2",
        3,
        "refused",
    )
    assert "fsdp" in rows[1]["details"]["problem"]


def test_measuring_no_step_is_refused_at_once(here, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*FAST, "--skip_steps=3", f"--output={tmp_path}"])
    assert here == [] and "leaves no step of 3 to measure" in capsys.readouterr().err


def test_speedup_is_per_device_against_one_device_at_the_same_batch():
    one = benchmark.Row("Traditional", 1, 4, images_per_second=10.0)
    many = benchmark.Row("fsdp", 8, 4, images_per_second=9.0)
    assert benchmark.with_speedup(many, one).speedup == pytest.approx(0.9)
    assert benchmark.with_speedup(benchmark.Row("fsdp", 8, 4, outcome="oom"), one).speedup is None


@pytest.mark.parametrize(("model", "parameters"), [("sd14", 859_520_964), ("sd21", 865_910_724)])
def test_the_unets_have_their_true_sizes(model, parameters):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(synthetic.config(model, "unet"))
    assert sum(p.numel() for p in unet.parameters()) == parameters
