"""Tests of the checks of the output folder."""

import errno
import os
import time
from pathlib import Path

import pytest

from sdjob.problems import JobError
from sdlaunch.preflight import output
from tests.sdjob.unprivileged import problems_as_user
from tests.sdlaunch.test_plan import found, prepare


def test_an_output_folder_that_hangs_is_73(workspace, monkeypatch):
    monkeypatch.setattr(output, "_write_probe", lambda output: time.sleep(60))
    begin = time.monotonic()
    job = prepare(workspace, check_timeout="0.5")
    assert found(job) == [("OUTPUT_DIR", 73)]
    assert time.monotonic() - begin < 10


REFUSED = OSError(errno.EPERM, "Operation not permitted")


def refusing(monkeypatch, *modes: str, error: OSError = REFUSED, rename: bool = False) -> None:
    """As mounts of object stores do: files cannot be opened in these modes, or nothing can be renamed."""
    original = Path.open

    def open_file(self, mode="r", *given, **named):
        if mode in modes:
            raise error
        return original(self, mode, *given, **named)

    def cannot(self, target):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(Path, "open", open_file)
    if rename:
        monkeypatch.setattr(Path, "rename", cannot)
        monkeypatch.setattr(Path, "replace", cannot)


@pytest.mark.parametrize(
    ("modes", "rename", "cannot"),
    [
        (["ab"], False, "append to a file (Operation not permitted)"),
        (["r+b"], False, "rewrite a part of a file (Operation not permitted)"),
        (
            [],
            True,
            "replace a file (Function not implemented), rename a folder (Function not implemented)",
        ),
    ],
)
def test_a_mount_of_an_object_store_is_73(workspace, monkeypatch, modes, rename, cannot):
    folder = Path(workspace["OUTPUT_DIR"])
    folder.mkdir()
    refusing(monkeypatch, *modes, rename=rename)
    job = prepare(workspace)
    assert found(job) == [("OUTPUT_DIR", 73)]
    assert job.problems[0].found == (
        f"the file system of {folder} cannot {cannot}, as is common with mounts of object stores"
    )
    assert "Mount a disk or a shared file system there" in job.problems[0].remedy
    assert not list(folder.iterdir())


def test_a_disk_that_fills_up_meanwhile_is_not_an_object_store(workspace, monkeypatch):
    refusing(monkeypatch, "ab", error=OSError(errno.ENOSPC, "No space left on device"))
    (problem,) = prepare(workspace).problems
    assert problem.found == f"{workspace['OUTPUT_DIR']} has no space left"


@pytest.mark.skipif(os.getuid() != 0, reason="root may write everywhere; only root may give a folder away")
def test_the_owner_of_a_closed_folder_is_named(tmp_path):
    folder = tmp_path / "output"
    folder.mkdir(mode=0o755)
    os.chown(folder, 4321, 4321)

    def write() -> None:
        try:
            (folder / "new").mkdir()
        except OSError as error:
            raise JobError(output.unwritable(folder, error)) from error

    assert problems_as_user(write, folder) == {
        "OUTPUT_DIR": f"{folder} cannot be written by user 65534 (it is of user 4321, mode drwxr-xr-x)"
    }


def test_a_full_volume_is_73(workspace, tmpfs):
    volume = tmpfs("64k")
    (volume / "filler").write_bytes(bytes(65536))
    assert {code for _, code in found(prepare(workspace, OUTPUT_DIR=str(volume)))} == {73}


@pytest.mark.parametrize("setting", ["OUTPUT_DIR", "cache_dir"])
def test_nothing_is_written_into_the_inputs(workspace, setting):
    job = prepare(workspace)
    inside = f"{job.mounts['DATASET_DIR']['path']}/new"
    assert found(prepare(workspace, **{setting: inside})) == [(setting, 64)]
