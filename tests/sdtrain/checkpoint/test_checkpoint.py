"""Checkpoints: complete or absent, committed by one rename, and what their state holds."""

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

from sdjob.output.checkpoint_files import MANIFEST
from sdjob.output.layout import OutputLayout
from sdjob.problems import JobError
from sdtrain.checkpoint import checkpoint, start_point
from sdtrain.reporting.stopwatch import Spent
from tests.support.checkpoints import FACTS, names, save, spoil, state
from tests.support.worker import Killed


def test_a_checkpoint_of_an_unknown_format_is_refused(layout):
    folder = save(layout, 3)
    values = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**values, "format": 99, "more": 1}))
    with pytest.raises(JobError) as caught:
        checkpoint.read_state(folder)
    assert caught.value.code == 64
    assert "format 99, this version reads 2 and 3" in str(caught.value)


def test_the_state_of_format_2_is_read(tmp_path):
    """As version 0.1 wrote it."""
    values = {"format": 2, "step": 3, "place": 30, "loss": 0.5, "loss_sum": 1.5, "fingerprint": FACTS}
    values |= {"skipped_steps": 1, "bad_samples": ["a.png"], "origin": "/output/checkpoint/checkpoint-000002"}
    values |= {"past": [{"steps": 3, "global_batch": 10}], "spent": {"seconds": 2.5, "device_seconds": 5.0}}
    (tmp_path / "state.json").write_text(json.dumps(values))
    wanted = replace(state(3), global_batch=0, skipped_steps=1, bad_samples=("a.png",))
    assert checkpoint.read_state(tmp_path) == replace(wanted, origin="/output/checkpoint/checkpoint-000002")
    del values["spent"], values["past"], values["skipped_steps"], values["bad_samples"], values["origin"]
    (tmp_path / "state.json").write_text(json.dumps(values))  # as before these were recorded
    assert checkpoint.read_state(tmp_path) == replace(state(3), global_batch=0, spent=Spent())


def test_the_mean_loss_counts_applied_steps_only():
    assert replace(state(4), loss_sum=1.5, skipped_steps=1).mean_loss == 0.5
    assert replace(state(1), skipped_steps=1).mean_loss is None


def test_a_saved_checkpoint_is_complete_and_read_again(layout):
    folder = save(layout, 3)
    assert folder == layout.checkpoint / "checkpoint-000003"
    assert names(layout) == ["checkpoint-000003"]  # nothing temporary stays
    assert checkpoint.read_state(folder) == state(3)
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == {
        "model.safetensors",
        "settings.json",
        "state.json",
    }
    assert start_point.newest(layout, "auto").path == folder


def test_a_killed_save_leaves_the_earlier_checkpoint_and_no_partial_one(layout):
    save(layout, 2)

    def half(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise Killed

    with pytest.raises(Killed):
        save(layout, 4, write=half)
    assert start_point.newest(layout, "auto").step == 2
    save(layout, 4)
    assert start_point.newest(layout, "auto").step == 4
    assert names(layout) == ["checkpoint-000002", "checkpoint-000004"]


@pytest.mark.parametrize("function", ["write_manifest", "sync_tree", "sync", "_delete_oldest"])
def test_death_anywhere_in_a_save_leaves_a_complete_newest_one(layout, monkeypatch, function):
    save(layout, 2)

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, function, die)
        save(layout, 4, limit=1)
    assert start_point.newest(layout, "auto").step in (2, 4)
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
    assert start_point.newest(layout, "auto").step == 2


def test_a_file_that_cannot_be_synced_is_not_a_checkpoint(layout, monkeypatch):
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


def test_an_old_one_is_deleted_only_when_the_new_one_is_complete(layout):
    save(layout, 1, limit=1)

    def write(folder: Path) -> None:
        assert names(layout) == [".checkpoint-000002.tmp", "checkpoint-000001"]
        (folder / "model.safetensors").write_bytes(b"new")

    save(layout, 2, limit=1, write=write)
    assert names(layout) == ["checkpoint-000002"]


def test_the_one_just_saved_is_never_deleted(layout):
    """As after resume=<an earlier checkpoint>, with later ones of the abandoned branch."""
    for step in (2, 4, 6):
        save(layout, step)
    save(layout, 3, limit=1)
    assert "checkpoint-000003" in names(layout)


def test_broken_ones_do_not_count_for_the_limit(layout):
    save(layout, 1)
    spoil(save(layout, 2), "file cut")
    save(layout, 3, limit=2)
    assert start_point.newest(layout, "auto").step == 3
    spoil(layout.step_folder(3), "changed byte")
    assert start_point.newest(layout, "auto").step == 1


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
    assert start_point.newest(layout, "auto").step == 1


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
