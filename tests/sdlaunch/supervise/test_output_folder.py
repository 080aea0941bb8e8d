"""What is wrong with the output folder after a job."""

import errno
import os
import threading

import pytest

from sdlaunch.preflight import output
from sdlaunch.supervise import output_folder
from sdlaunch.supervise.lock import Lock


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "lock-0"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    yield Lock(path, descriptor)
    os.close(descriptor)


def found(mine, tmp_path, *, failed):
    problem = output_folder.problem_after(mine, tmp_path, failed=failed)
    assert problem is None or (problem.subject, problem.code) == ("OUTPUT_DIR", 73)
    return problem and problem.found.replace(str(tmp_path), "it")


def test_a_folder_that_can_be_written_is_no_problem_and_nothing_stays_in_it(mine, tmp_path):
    assert found(mine, tmp_path, failed=True) is None
    assert os.listdir(tmp_path) == ["lock-0"]  # noqa: PTH208


def test_a_folder_is_written_to_after_a_failure_only(mine, tmp_path, monkeypatch):
    def fails(probe):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(output, "_write_probe", fails)
    assert found(mine, tmp_path, failed=False) is None
    assert found(mine, tmp_path, failed=True) == "it cannot be written (Input/output error)"


@pytest.mark.parametrize("failed", [False, True])
def test_a_folder_that_is_gone(mine, tmp_path, failed):
    mine.path.unlink()
    wanted = "it was removed, unmounted or replaced while the job ran"
    assert found(mine, tmp_path, failed=failed) == wanted


def test_a_folder_that_does_not_answer(mine, tmp_path, monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(output, "_write_probe", lambda probe: answer.wait())
    monkeypatch.setattr(output_folder, "_PATIENCE", 0.2)
    assert found(mine, tmp_path, failed=True) == "it does not answer within 0.2 s"
    answer.set()
