"""Tests of the folder for temporary files."""

import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdjob.problems import JobError
from sdlaunch import plan
from sdlaunch.inputs import temporary_folder
from sdlaunch.inputs.temporary_folder import TemporaryFolder, find, private
from tests.support.launcher import found, prepare, supervised


@pytest.fixture
def spare(tmp_path) -> Iterator[Path]:
    """A usable folder; those of pytest have long paths."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def faulty(kind: str, tmp_path: Path) -> Path:
    if kind == "long":
        folder = tmp_path / ("x" * 80)
        folder.mkdir()
        return folder
    if kind == "a file":
        (tmp_path / "file").write_text("")
        return tmp_path / "file"
    return tmp_path / "none"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("long", "is too long for the sockets of loader processes ("),
        ("a file", "is a file, not a folder"),
        ("missing", "does not exist"),
    ],
)
@pytest.mark.parametrize("variable", ["TMPDIR", "TEMP", "TMP"])
def test_a_folder_that_fails_is_replaced_by_a_short_one(tmp_path, spare, kind, why, variable):
    folder = faulty(kind, tmp_path)
    found = find({variable: str(folder)}, [str(spare)])
    assert (found.path, found.problems) == (spare, ())
    (warning,) = found.warnings
    assert warning.startswith(f"{variable}: {folder} {why}")
    assert warning.endswith(f"; the processes use {spare}")
    assert found.environment() == {"TMPDIR": str(spare)}
    assert found.environment(spare / "in it") == {"TMPDIR": f"{spare}/in it"}
    assert TemporaryFolder(spare).environment(Path("/tmp/in it")) == {"TMPDIR": "/tmp/in it"}
    assert TemporaryFolder(spare).environment(Path("/" + 67 * "x")) == {}  # a path of a socket ends somewhere
    assert not list(spare.iterdir())  # only looked at


def test_a_folder_that_serves_is_left_alone(spare):
    for environ, defaults in (
        ({"TMPDIR": str(spare)}, []),
        ({}, [str(spare)]),
        ({"TMPDIR": ""}, [str(spare)]),
    ):
        assert find(environ, defaults) == TemporaryFolder(spare)
    assert TemporaryFolder(spare).environment() == {}
    assert not list(spare.iterdir())


@pytest.fixture
def any_length(monkeypatch):
    monkeypatch.setattr(temporary_folder, "_SOCKET_NAME", 0)


def test_a_full_folder_is_replaced(tmpfs, spare, any_length):
    full = tmpfs("64k")
    (full / "filler").write_bytes(bytes(65536))
    (warning,) = find({"TMPDIR": str(full)}, [str(spare)]).warnings
    assert f"{full} has no space left" in warning


def test_a_noexec_folder_is_replaced_only_by_a_better_one(tmpfs, spare, any_length):
    noexec = str(tmpfs("8m,noexec"))
    (warning,) = find({"TMPDIR": noexec}, [str(spare)]).warnings
    assert f"{noexec} is mounted noexec" in warning
    assert find({"TMPDIR": noexec}, ["/nonexistent"]) == TemporaryFolder(Path(noexec))
    assert find({"TMPDIR": "/nonexistent"}, [noexec]).path == Path(noexec)


def test_without_any_folder_the_code_is_69_and_each_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    found = find({"TMPDIR": "/nonexistent"}, [str(tmp_path / "file")])
    (problem,) = found.problems
    assert (problem.code, problem.subject) == (69, "TMPDIR")
    assert problem.found == (
        f"/nonexistent does not exist; {tmp_path}/file is a file, not a folder, or is below one"
    )
    assert "--tmpfs /tmp" in problem.remedy
    assert found.environment() == {}


def test_a_private_folder_is_for_this_user_only_and_removed(tmp_path):
    before = os.umask(0)
    try:
        with private(tmp_path, tmp_path, 0) as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            (folder / "socket").write_text("")
    finally:
        os.umask(before)
    assert not folder.exists()


def test_what_a_killed_launcher_has_left_goes_with_the_next_start_and_that_of_others_stays(tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    with private(tmp_path, output, 0) as folder, private(tmp_path, output, 1) as of_another_node:
        (folder / "left").write_text("")
        (tmp_path / "moved").symlink_to(output)
        with (
            private(tmp_path, tmp_path / "moved", 0) as again,
            private(tmp_path, tmp_path, 0) as of_another_job,
        ):
            assert again == folder
            assert not list(again.iterdir())
            assert len({folder, of_another_node, of_another_job}) == 3
            assert of_another_node.is_dir()


def test_a_planted_link_is_69(tmp_path):
    with private(tmp_path, tmp_path, 0) as folder:
        pass
    folder.symlink_to(tmp_path)
    with pytest.raises(JobError) as caught, private(tmp_path, tmp_path, 0):
        pass
    assert caught.value.code == 69
    assert str(folder) in str(caught.value)


def test_the_plan_shows_it(workspace, tmp_path):
    job = prepare(workspace, TMPDIR="/nonexistent")
    assert job.problems == ()
    assert job.launch.env["TMPDIR"] == str(job.temporary.path)
    assert "TMPDIR" not in prepare(workspace).launch.env
    (tmp_path / "a.env").write_text("TMPDIR=/nonexistent\n")
    assert prepare(workspace, ENV_FILE=str(tmp_path / "a.env")).launch.env == job.launch.env


def test_a_folder_that_does_not_answer_is_69(workspace, monkeypatch):
    monkeypatch.setattr(plan.temporary_folder, "find", lambda *_: time.sleep(60))
    assert found(prepare(workspace, check_timeout="0.5")) == [("TMPDIR", 69)]


@pytest.mark.parametrize("variables", [{}, {"TMPDIR": "/nonexistent"}], ids=["usable", "replaced"])
@pytest.mark.parametrize("signum", [None, 15], ids=["finished", "stopped"])
def test_it_is_there_while_the_processes_run_and_gone_after_each_ending(
    workspace, tmp_path, signum, variables
):
    script = """
import tempfile
say("[rank 0] " + tempfile.gettempdir())
"""
    if signum:
        script += "asked() and note(0, 75)"
    job = supervised(tmp_path, workspace, script, **variables)
    line = job.until("/sdjob-").strip()
    if signum:
        assert Path(line).is_dir()
        job.process.send_signal(signum)
    job.end(75 if signum else 0)
    assert not Path(line).exists()
