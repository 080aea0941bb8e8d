"""The estimate of time in the plan: from a measured speed, with its basis, or none."""

import dataclasses
import json
from pathlib import Path

import pytest

from sdjob.output import run_settings, starts
from sdjob.output.checkpoint_files import MODEL, STATE
from sdjob.output.layout import OutputLayout, write_manifest
from sdjob.settings.flags import parse
from sdlaunch import duration, plan
from tests.sdlaunch.workspace import HOME


def planned(workspace, **settings):
    return plan.prepare([(name, str(value)) for name, value in settings.items()], workspace, HOME)


def line(workspace, **settings) -> str:
    (found,) = [line for line in planned(workspace, **settings).arithmetic if line.startswith("time")]
    return found


@pytest.fixture
def earlier(workspace):
    """A run of 2 processes with a checkpoint at step 100 and logged speeds."""
    job = planned(workspace, NPROC_PER_NODE=2, batch_size=3)
    layout = OutputLayout(Path(workspace["OUTPUT_DIR"]))
    folder = layout.step_folder(100)
    folder.mkdir(parents=True)
    (folder / STATE).write_text(json.dumps({"format": 3, "step": 100}))
    run_settings.write(folder, parse(job.launch.argv[job.launch.argv.index("sdtrain") + 1 :]))
    (folder / MODEL).touch()
    write_manifest(folder)
    layout.run.mkdir()
    starts.begin(layout, 0.0, 2, 0.0)
    rates = [{"step": 0}, *({"step": step, "images_per_second": 10 + step} for step in (1, 2, 90))]
    layout.metrics.write_text("".join(f"{json.dumps(each)}\n" for each in rates))
    return layout


def test_without_a_measured_speed_there_is_no_estimate(workspace):
    assert line(workspace).startswith(
        "time: no estimate, since no speed was measured on this device with this"
    )


def test_the_rest_of_a_run_takes_as_long_as_its_steps_did(workspace, earlier):
    """Of 400 steps 300 are left, of 2 × 3 images; the median of 11, 12 and 100 images/s."""
    settings = {"NPROC_PER_NODE": 2, "batch_size": 3}
    assert line(workspace, **settings) == (
        "time (estimate): 300 steps × 6 images / 12 images/s = 0:02:30, 0.083 device hours, and the time of starts, "
        f"checkpoints and validation; the median of 3 logged steps of the run in {earlier.root}, with 2 processes"
    )
    assert "400 steps × 6 images / 12 images/s = 0:03:20" in line(workspace, **settings, resume="never")
    assert "300 steps × 3 images / 6 images/s" in line(workspace, batch_size=3)  # one process


@pytest.mark.parametrize("other", [{"batch_size": 2}, {"resolution": 64}, {"lora_rank": 4}])
def test_a_speed_with_other_settings_says_nothing(workspace, earlier, other):
    assert "no estimate" in line(workspace, **{"NPROC_PER_NODE": 2, "batch_size": 3, **other})


@pytest.mark.parametrize("text", ["{", "[]\n3\n", "\x00"])
def test_a_damaged_record_of_speeds(workspace, earlier, text):
    earlier.metrics.write_text(text)
    assert "no estimate" in line(workspace, NPROC_PER_NODE=2, batch_size=3)


def test_the_tables_of_results(workspace, tmp_path, monkeypatch):
    """Of a device of the same name, with this model, plugin, batch and precision."""
    row = {"strategy": "torch_ddp", "devices": 8, "batch_size": 1, "images_per_second": 80.0, "cached": False}
    row["details"] = {"precision": "no"}
    table = {"device name": "X 1", "model": "own, random weights, 512 px; more", "rows": [{}, row]}
    (tmp_path / "results").mkdir()
    (tmp_path / "results/2026-01-01.json").write_text(json.dumps(table))
    (tmp_path / "results/2026-01-02.json").write_text("{}")
    monkeypatch.setattr(duration, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(duration.trainable, "parameters", lambda *_: 7)
    monkeypatch.setattr(duration, "_MODELS", {7: "own"})
    find = plan.devices.find
    monkeypatch.setattr(plan.devices, "find", lambda *given: dataclasses.replace(find(*given), name="X 1"))
    found = line(workspace, cache_latents="no")
    assert "400 steps × 1 image / 10 images/s = 0:00:40" in found
    assert found.endswith("from benchmarks/results/2026-01-01.json, measured with random weights")
    for other in (
        {"batch_size": 2},
        {"plugin": "fsdp"},
        {"resolution": 64},
        {"use_ema": 1},
        {"cache_latents": "memory"},
    ):
        assert "no estimate" in line(workspace, **{"cache_latents": "no", **other})
