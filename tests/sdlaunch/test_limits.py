"""Tests of limits: what a launcher says where the system gives it nothing more."""

import errno
import os
import subprocess

import pytest

from sdlaunch import limits
from sdlaunch.display import console
from tests.support.launcher import prepare

ERRORS = {
    "command": (OSError(errno.E2BIG, "Argument list too long"), 64),
    "files": (OSError(errno.EMFILE, "Too many open files"), 69),
    "processes": (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 69),
    "threads": (RuntimeError("can't start new thread"), 69),
    "memory": (OSError(errno.ENOMEM, "Cannot allocate memory"), 71),
    "python": (MemoryError(), 71),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_limit_is_a_problem_with_a_remedy_and_no_bug(name, capsys):
    error, code = ERRORS[name]

    def main():
        raise error

    assert console.guarded(main) == code
    text = capsys.readouterr().err
    assert "→" in text and "bug" not in text


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O"), RuntimeError("x"), ValueError("MemoryError")])
def test_anything_else_is_none(error):
    assert limits.problem_of(error) is None


def test_a_command_that_is_too_large_is_64_when_it_is_started(workspace, monkeypatch):
    from sdlaunch.supervise import supervisor

    def refused(*_, **__):
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))

    job = prepare(workspace)
    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.setattr(supervisor.signal, "signal", lambda *_: None)
    assert supervisor.run(job, {}) == 64
    assert "larger than this system takes" in (job.output / "failure.json").read_text()
