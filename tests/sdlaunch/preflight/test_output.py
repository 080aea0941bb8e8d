"""Tests of the checks of the output folder."""

import errno
import time
from pathlib import Path

from sdlaunch.preflight import output
from tests.sdlaunch.test_plan import found, prepare


def test_an_output_folder_that_hangs_is_73(workspace, monkeypatch):
    monkeypatch.setattr(output, "_write_probe", lambda probe: time.sleep(60))
    begin = time.monotonic()
    job = prepare(workspace, check_timeout="0.5")
    assert found(job) == [("OUTPUT_DIR", 73)]
    assert time.monotonic() - begin < 10


def test_an_output_folder_where_checkpoints_could_not_be_put_in_place_is_73(workspace, monkeypatch):
    """As with some mounts of object stores, which know files but no folders."""
    folder = Path(workspace["OUTPUT_DIR"])
    folder.mkdir()

    def rename(self, target):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(Path, "rename", rename)
    job = prepare(workspace)
    assert found(job) == [("OUTPUT_DIR", 73)]
    assert "a folder with files cannot be renamed there (Function not implemented)" in job.problems[0].found
    assert not list(folder.iterdir())


def test_a_full_volume_is_73(workspace, tmpfs):
    volume = tmpfs("64k")
    (volume / "filler").write_bytes(bytes(65536))
    assert {code for _, code in found(prepare(workspace, OUTPUT_DIR=str(volume)))} == {73}
