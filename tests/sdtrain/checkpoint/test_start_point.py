"""Which checkpoint a run continues, and what it moves aside.

Tests of sdtrain/checkpoint/start_point.py and sdjob/output/newest_checkpoint.py.
"""

import json
import os
import shutil
from dataclasses import replace

import pytest

from sdjob.output import newest_checkpoint
from sdjob.output.checkpoint_files import MODEL
from sdjob.output.layout import write_manifest
from sdjob.problems import JobError
from sdtrain.checkpoint import start_point
from sdtrain.checkpoint.background import Saver
from tests.support.checkpoints import FACTS, REASONS, names, save, spoil, state
from tests.support.worker import context_of, snapshot


@pytest.mark.parametrize("how", REASONS)
def test_a_broken_newest_one_is_skipped_and_named(layout, capsys, how):
    save(layout, 2)
    spoil(save(layout, 4), how)
    assert start_point.newest(layout, "auto").step == 2
    out = capsys.readouterr().out
    assert f"checkpoint-000004 is incomplete or damaged and is skipped: {REASONS[how]}" in out
    assert names(layout) == ["checkpoint-000002", "checkpoint-000004"]  # neither is deleted


def test_a_copy_under_the_name_of_another_step_is_skipped(layout, capsys):
    """It would be taken for that step: steps would be left out, and weights other than those of an undisturbed run."""
    shutil.copytree(save(layout, 2), layout.step_folder(9))
    shutil.copytree(layout.step_folder(2), layout.checkpoint / "checkpoint-٤٢٣٤٥٦")
    assert start_point.find(context_of(layout), FACTS).state == state(2)
    assert "checkpoint-000009 is incomplete or damaged and is skipped: its state.json is of step 2" in (
        capsys.readouterr().out
    )


DAMAGES = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one bit": lambda path: _flip(path),
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "not text": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
}


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "settings.json", "model.safetensors"])
def test_any_damage_to_any_file_leads_to_the_next_older_one(layout, name, damage, capsys):
    save(layout, 2)
    DAMAGES[damage](save(layout, 4) / name)
    assert start_point.find(context_of(layout), FACTS).state == state(2)
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert "checkpoint-000004 is incomplete or damaged and is skipped: " in said
    assert name in said or name == "manifest.json"
    with pytest.raises(JobError) as error:
        start_point.find(context_of(layout, resume=str(layout.step_folder(4))), FACTS)
    assert error.value.code == 64


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "3", "{", "[" * 100_000, '{"format": [3]}', '{"format": 3}'),
        '{"format": 3, "step": 4, "fingerprint": []}',
        '{"format": 3, "step": 4, "fingerprint": {"a": "b"}}',
        '{"format": 3, "step": 4, "fingerprint": {"dataset_name": 5}}',
    ],
)
def test_a_state_of_another_kind_is_refused(layout, text):
    """Whole by its manifest: of another version, or edited."""
    folder = save(layout, 4)
    (folder / "state.json").write_text(text)
    write_manifest(folder)
    with pytest.raises(JobError) as error:
        start_point.find(context_of(layout), FACTS)
    assert (error.value.code, error.value.problems[0].subject) == (64, "resume")
    assert "state.json: " in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"loss_sum": float("nan")},
        {"loss_sum": float("inf")},
        {"samples_seen": -1},
        {"samples_seen": 10**30},
        {"skipped_steps": -1},
        {"global_batch": -1},
        {"spent": {"seconds": float("nan"), "device_seconds": 1.0}},
        {"spent": {"seconds": 1.0, "device_seconds": 1e308}},
        {"spent": {"seconds": 1.0, "device_seconds": 1.0, "at": float("inf")}},
    ],
)
def test_a_state_with_numbers_that_no_run_has_is_refused(layout, values):
    folder = save(layout, 4)
    (folder / "state.json").write_text(
        json.dumps({**json.loads((folder / "state.json").read_text()), **values})
    )
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(JobError) as caught:
        start_point.find(context_of(layout), FACTS)
    assert caught.value.code == 64 and next(iter(values)) in str(caught.value)


def test_a_file_that_claims_to_be_huge_is_not_read(layout, capsys):
    save(layout, 2)
    folder = save(layout, 4)
    os.truncate(folder / MODEL, 10 << 40)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][MODEL]["bytes"] = 10 << 40
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert start_point.find(context_of(layout), FACTS, 1 << 30).state == state(2)
    assert "checkpoint-000004 is incomplete or damaged and is skipped: manifest.json names files of" in (
        capsys.readouterr().out
    )
    manifest["files"]["x"] = {"bytes": -10 << 40, "sha256": ""}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(JobError, match="more than a checkpoint of this model has"):
        start_point.newest(layout, str(folder), 1 << 30)


def test_of_many_broken_ones_the_newest_are_named(layout, capsys):
    save(layout, 1)
    for step in range(2, 200):
        layout.step_folder(step).mkdir()
    assert start_point.find(context_of(layout), FACTS).state == state(1)
    said = [line for line in capsys.readouterr().out.splitlines() if "is skipped" in line]
    assert len(said) == 20 and "checkpoint-000199" in said[0] and said[-1].endswith("they are not named")


def test_a_step_that_no_run_reaches_is_no_checkpoint(layout):
    save(layout, 2)
    shutil.copytree(layout.step_folder(2), layout.checkpoint / f"checkpoint-{'9' * 60}")
    assert start_point.find(context_of(layout), FACTS).state == state(2)


def test_resume_never_and_must(layout):
    with pytest.raises(JobError) as error:
        start_point.newest(layout, "must")
    assert error.value.code == 64
    assert start_point.newest(layout, "auto") is None
    save(layout, 1)
    assert start_point.newest(layout, "never") is None
    assert start_point.newest(layout, "must").step == 1


def test_resume_from_a_path(layout):
    save(layout, 2)
    save(layout, 4)
    for name in ("checkpoint-2", "checkpoint-000002"):  # as diffusers and as this project write it
        assert start_point.newest(layout, name).path == layout.step_folder(2)
    found = start_point.newest(layout, str(layout.step_folder(2)))
    assert (found.step, found.path) == (2, layout.step_folder(2))


@pytest.mark.parametrize("how", REASONS)
def test_a_broken_path_to_resume_from_is_refused_with_the_reason(layout, how):
    spoil(save(layout, 2), how)
    with pytest.raises(JobError) as error:
        start_point.newest(layout, str(layout.step_folder(2)))
    assert error.value.code == 64
    assert REASONS[how] in str(error.value)


def test_a_missing_path_is_refused(layout):
    with pytest.raises(JobError) as error:
        start_point.newest(layout, str(layout.root / "nowhere"))
    assert error.value.code == 64
    assert str(layout.root / "nowhere") in str(error.value)


def test_move_aside_loses_nothing(layout):
    assert start_point.move_aside(layout, None) is None
    contents = []
    for step in (1, 2):
        save(layout, step)
        (layout.checkpoint / "model_index.json").write_text(str(step))
        contents.append(snapshot(layout.checkpoint))
        aside = start_point.move_aside(layout, None)
        assert aside == layout.root / f"earlier-{step}"
        assert not layout.checkpoint.exists()
    assert [snapshot(layout.root / f"earlier-{step}" / "checkpoint") for step in (1, 2)] == contents
    layout.checkpoint.mkdir()
    assert start_point.move_aside(layout, None) is None  # an empty folder is not an earlier run


def test_a_run_that_died_before_its_first_checkpoint_is_moved_aside_too(layout):
    layout.tensorboard.mkdir(parents=True)
    assert start_point.move_aside(layout, None) is None
    (layout.tensorboard / "events").write_text("of the earlier run")
    layout.run.mkdir()
    layout.metrics.write_text("{}")
    (layout.checkpoint / ".checkpoint-000001.tmp").mkdir(parents=True)
    layout.samples.mkdir()
    layout.page.write_text("page of this run")
    assert start_point.move_aside(layout, None) == layout.root / "earlier-1"
    assert list(snapshot(layout.root)) == [
        "earlier-1/run/metrics.jsonl",
        "earlier-1/tensorboard/events",
        "report.html",
    ]
    assert not layout.tensorboard.exists()


def test_the_page_of_a_finished_run_is_moved_aside_with_its_report(layout):
    layout.run.mkdir(parents=True)
    for path in (layout.page, layout.page_data, layout.report):
        path.write_text("earlier")
    start_point.move_aside(layout, None)
    names = ["report.html", "report.json", "run/report_data.js"]
    assert list(snapshot(layout.root)) == [f"earlier-1/{name}" for name in names]


def test_the_newest_checkpoint_is_continued_with_its_state(layout):
    save(layout, 2)
    save(layout, 4)
    point = start_point.find(context_of(layout), FACTS)
    assert point == start_point.ResumePoint(layout.step_folder(4), state(4), is_branch=False)
    assert start_point.find(context_of(layout, resume="never"), FACTS) is None


def test_a_checkpoint_of_another_run_is_refused(layout):
    save(layout, 2)
    with pytest.raises(JobError) as error:
        start_point.find(context_of(layout), {**FACTS, "seed": "8"})
    assert [(problem.code, problem.subject) for problem in error.value.problems] == [(64, "seed")]


def test_a_named_checkpoint_starts_a_branch_once(layout):
    origin = str(save(layout, 2))
    save(layout, 4)
    context = context_of(layout, resume=origin)
    point = start_point.find(context, FACTS)
    assert (point.state.step, point.state.origin, point.is_branch) == (2, origin, True)
    start_point.take_over(layout, point)
    assert names(layout) == ["checkpoint-000002"]
    with Saver(context) as saver:
        saver.write(replace(state(3), origin=origin), lambda folder: (folder / MODEL).touch())
    point = start_point.find(context, FACTS)
    assert (point.state.step, point.is_branch) == (3, False)


def test_a_restart_of_the_same_run_continues_in_spite_of_resume_never(layout, monkeypatch):
    save(layout, 2)
    monkeypatch.setattr(start_point.exit_note, "has_started", lambda: True)
    assert start_point.find(context_of(layout, resume="never"), FACTS).state.step == 2


@pytest.mark.parametrize(
    ("exported", "reported", "last", "finished"),
    [
        (True, 4, 4, True),
        (False, 4, 4, False),
        (True, 3, 4, False),
        (True, None, 4, False),
        (True, 4, 5, False),
    ],
)
def test_a_run_is_finished_when_its_last_step_is_exported_and_reported(
    layout, exported, reported, last, finished
):
    layout.checkpoint.mkdir(parents=True)
    if exported:
        (layout.checkpoint / "model_index.json").touch()
    if reported:
        layout.report.write_text(json.dumps({"steps": reported}))
    assert newest_checkpoint.is_finished(context_of(layout, max_train_steps=last).spec, layout, 4) == finished
