"""Checkpoints: whole or not there, found again, never lost."""

import errno
import json
import os
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdjob.output.layout import MANIFEST, OutputLayout
from sdjob.problems import JobError
from sdtrain.checkpoint import checkpoint, resume
from sdtrain.checkpoint.checkpoint import TrainState
from sdtrain.reporting.stopwatch import Spent
from tests.support.worker import Killed, alone, snapshot

FACTS = {"seed": "7", "recipe": "dreambooth"}


@pytest.fixture
def layout(tmp_path):
    return OutputLayout(tmp_path / "out")


def state(step: int) -> TrainState:
    return TrainState(
        step,
        samples_seen=10 * step,
        loss=0.5,
        loss_sum=0.5 * step,
        fingerprint=FACTS,
        global_batch=10,
        spent=Spent(2.5, 5.0),
    )


def save(layout, step, *, limit=None, write=None) -> Path:
    def weights(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(bytes([step]) * 1000)

    return checkpoint.save(layout, state(step), write or weights, alone(), limit)


def names(layout) -> list[str]:
    return sorted(path.name for path in layout.checkpoint.iterdir())


def spoil(folder: Path, how: str) -> None:
    """Breaks a checkpoint in one way."""
    if how == "no manifest":
        (folder / MANIFEST).unlink()
    elif how == "half a manifest":
        (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:20])
    elif how == "not a manifest":
        (folder / MANIFEST).write_text("[]")
    elif how == "file gone":
        (folder / "weights.bin").unlink()
    elif how == "file cut":
        os.truncate(folder / "weights.bin", 10)
    else:
        (folder / "weights.bin").write_bytes(b"x" * 1000)


REASONS = {
    "no manifest": "manifest.json is missing: the save did not finish",
    "half a manifest": "manifest.json cannot be read",
    "not a manifest": "manifest.json cannot be read",
    "file gone": "weights.bin is missing",
    "file cut": "weights.bin has 10 bytes instead of 1000",
    "changed byte": "weights.bin has changed since it was saved",
}


def test_a_checkpoint_of_another_version_is_refused_not_guessed(layout):
    folder = save(layout, 3)
    values = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**values, "format": 99, "more": 1}))
    with pytest.raises(JobError) as caught:
        checkpoint.read_state(folder)
    assert caught.value.code == 64
    assert "format 99, this version reads 2 and 3" in str(caught.value)


def test_a_checkpoint_of_version_0_1_has_no_global_batch(layout):
    path = save(layout, 3) / "state.json"
    values = json.loads(path.read_text())
    del values["global_batch"], values["spent"]
    values["past"] = [{"steps": 3, "global_batch": 10}]
    path.write_text(json.dumps(values))
    assert checkpoint.read_state(path.parent) == replace(state(3), global_batch=0, spent=Spent())


def test_saves_what_is_needed_to_go_on(layout):
    folder = save(layout, 3)
    assert folder == layout.checkpoint / "checkpoint-000003"
    assert names(layout) == ["checkpoint-000003"]  # nothing temporary stays
    assert checkpoint.read_state(folder) == state(3)
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == {"state.json", "weights.bin"}
    assert resume.newest(layout, "auto").path == folder


@pytest.mark.parametrize("how", REASONS)
def test_a_broken_newest_one_is_passed_over_and_named(layout, capsys, how):
    save(layout, 2)
    spoil(save(layout, 4), how)
    assert resume.newest(layout, "auto").step == 2
    out = capsys.readouterr().out
    assert f"checkpoint-000004 is incomplete and is skipped: {REASONS[how]}" in out
    assert names(layout) == ["checkpoint-000002", "checkpoint-000004"]  # and is left alone


def test_a_killed_save_leaves_the_earlier_checkpoint_and_no_half_one(layout):
    save(layout, 2)

    def half(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(b"half")
        raise Killed

    with pytest.raises(Killed):
        save(layout, 4, write=half)
    assert resume.newest(layout, "auto").step == 2
    save(layout, 4)
    assert resume.newest(layout, "auto").step == 4
    assert names(layout) == ["checkpoint-000002", "checkpoint-000004"]


@pytest.mark.parametrize("function", ["write_manifest", "sync_tree", "sync", "_delete_oldest"])
def test_death_anywhere_in_a_save_leaves_a_whole_newest_one(layout, monkeypatch, function):
    save(layout, 2)

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, function, die)
        save(layout, 4, limit=1)
    assert resume.newest(layout, "auto").step in (2, 4)
    save(layout, 6, limit=1)
    assert names(layout) == ["checkpoint-000006"]  # what the dead one left is gone too


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_folders_takes_checkpoints(layout, monkeypatch, number):
    original = os.fsync

    def of_files_alone(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        original(handle)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    save(layout, 2)
    assert resume.newest(layout, "auto").step == 2


def test_a_file_that_cannot_be_synced_is_no_checkpoint(layout, monkeypatch):
    def fails(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(JobError) as error:
        save(layout, 2)
    assert error.value.code == 73


def test_limit_keeps_the_newest(layout):
    for step in (1, 2, 3, 10):
        save(layout, step, limit=2)
    assert names(layout) == ["checkpoint-000003", "checkpoint-000010"]


def test_an_old_one_is_deleted_only_when_the_new_one_is_whole(layout):
    save(layout, 1, limit=1)

    def write(folder: Path) -> None:
        assert names(layout) == [".checkpoint-000002.tmp", "checkpoint-000001"]
        (folder / "weights.bin").write_bytes(b"new")

    save(layout, 2, limit=1, write=write)
    assert names(layout) == ["checkpoint-000002"]


def test_the_one_just_saved_is_never_forgotten(layout):
    """As after resume=<an earlier checkpoint>, with later ones of the abandoned course beside it."""
    for step in (2, 4, 6):
        save(layout, step)
    save(layout, 3, limit=1)
    assert "checkpoint-000003" in names(layout)


def test_broken_ones_do_not_count_for_the_limit(layout):
    save(layout, 1)
    spoil(save(layout, 2), "file cut")
    save(layout, 3, limit=2)
    assert resume.newest(layout, "auto").step == 3
    spoil(layout.step_folder(3), "changed byte")
    assert resume.newest(layout, "auto").step == 1


def test_resume_never_and_must(layout):
    with pytest.raises(JobError) as error:
        resume.newest(layout, "must")
    assert error.value.code == 64
    assert resume.newest(layout, "auto") is None
    save(layout, 1)
    assert resume.newest(layout, "never") is None
    assert resume.newest(layout, "must").step == 1


def test_resume_from_a_path(layout):
    save(layout, 2)
    save(layout, 4)
    found = resume.newest(layout, str(layout.step_folder(2)))
    assert (found.step, found.path) == (2, layout.step_folder(2))


@pytest.mark.parametrize("how", REASONS)
def test_a_broken_path_to_resume_from_is_refused_with_the_reason(layout, how):
    spoil(save(layout, 2), how)
    with pytest.raises(JobError) as error:
        resume.newest(layout, str(layout.step_folder(2)))
    assert error.value.code == 64
    assert REASONS[how] in str(error.value)


def test_a_path_that_is_not_there_is_refused(layout):
    with pytest.raises(JobError) as error:
        resume.newest(layout, str(layout.root / "nowhere"))
    assert error.value.code == 64
    assert str(layout.root / "nowhere") in str(error.value)


def test_move_aside_loses_nothing(layout):
    assert resume.move_aside(layout, None) is None
    contents = []
    for step in (1, 2):
        save(layout, step)
        (layout.checkpoint / "model_index.json").write_text(str(step))
        contents.append(snapshot(layout.checkpoint))
        aside = resume.move_aside(layout, None)
        assert aside == layout.root / f"earlier-{step}"
        assert not layout.checkpoint.exists()
    assert [snapshot(layout.root / f"earlier-{step}" / "checkpoint") for step in (1, 2)] == contents
    layout.checkpoint.mkdir()
    assert resume.move_aside(layout, None) is None  # an empty folder is no earlier run


def test_a_run_that_died_before_its_first_checkpoint_is_moved_aside_too(layout):
    layout.tensorboard.mkdir(parents=True)
    assert resume.move_aside(layout, None) is None
    (layout.tensorboard / "events").write_text("of the earlier run")
    layout.run.mkdir()
    layout.metrics.write_text("{}")
    (layout.checkpoint / ".checkpoint-000001.tmp").mkdir(parents=True)
    layout.samples.mkdir()
    layout.page.write_text("page")
    assert resume.move_aside(layout, None) == layout.root / "earlier-1"
    assert list(snapshot(layout.root)) == [
        "earlier-1/report.html",
        "earlier-1/run/metrics.jsonl",
        "earlier-1/tensorboard/events",
    ]
    assert not layout.tensorboard.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # torch.save may still hold its file


def _safetensors(folder: Path) -> None:
    save_file({"a": torch.zeros(100_000)}, folder / "model.safetensors")


def _pickle(folder: Path) -> None:
    torch.save(torch.zeros(100_000), folder / "optimizer.pt")


def _plain(folder: Path) -> None:
    (folder / "a").write_bytes(bytes(400_000))


@pytest.mark.parametrize("write", [_safetensors, _pickle, _plain])
def test_a_full_disk_is_73_and_keeps_the_earlier_checkpoint(small_disk, write):
    layout = OutputLayout(small_disk)
    first = save(layout, 1)
    with pytest.raises(JobError) as error:
        save(layout, 2, write=write)
    assert error.value.code == 73
    assert str(layout.checkpoint) in str(error.value)
    assert names(layout) == [first.name]
    assert resume.newest(layout, "auto").step == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_failed_write_is_73(layout, number):
    save(layout, 1)

    def write(folder: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(JobError) as error:
        save(layout, 2, write=write)
    assert error.value.code == 73
    assert os.strerror(number) in str(error.value)
    assert names(layout) == ["checkpoint-000001"]


def test_a_folder_that_cannot_be_made_is_73(layout, monkeypatch):
    save(layout, 1)

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(JobError) as error:
        patch.setattr(Path, "mkdir", refuse)
        save(layout, 2)
    assert error.value.code == 73


def test_other_errors_are_not_taken_for_a_full_disk(layout):
    def write(folder: Path) -> None:
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match="shapes differ"):
        save(layout, 1, write=write)
