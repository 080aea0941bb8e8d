"""The exit note of a worker, and what an earlier attempt tells the next one."""

import json

import pytest

from sdjob.problems import bad_setting
from sdjob.protocol import Channel, ExitNote, Heartbeat
from sdtrain.runtime import exit_note

PROBLEM = bad_setting("lr", "is 2", "Lower it.")


@pytest.fixture
def environ(tmp_path):
    """The variables of rank 3 in its second attempt."""
    channel = Channel(tmp_path / "new" / "notes", tmp_path / "stop")
    return {**channel.environment(), "RANK": "3", "TORCHELASTIC_RESTART_COUNT": "1"}


@pytest.fixture
def notes(tmp_path):
    return tmp_path / "new" / "notes"


def test_without_a_launcher_there_is_no_note():
    assert exit_note.leave(75, environ={}) is False


def test_a_note_says_which_rank_ended_why_and_when(environ, notes):
    assert exit_note.leave(64, step=7, problems=[PROBLEM], error="E", traceback="T", environ=environ)
    assert [path.name for path in notes.iterdir()] == ["rank-3.json"]  # nothing temporary
    note = json.loads((notes / "rank-3.json").read_text())
    assert note.pop("time") > 1e9
    assert note == {
        "rank": 3,
        "code": 64,
        "step": 7,
        "problems": [{"subject": "lr", "found": "is 2", "remedy": "Lower it.", "code": 64}],
        "error": "E",
        "traceback": "T",
    }


@pytest.mark.parametrize(("step", "noted"), [(None, 41), (0, 0), (7, 7)])
def test_the_step_is_that_of_the_heartbeat_unless_it_is_known(environ, notes, step, noted):
    notes.mkdir(parents=True)
    Heartbeat(1, "step", 41).write(notes, 3)
    Heartbeat(1, "step", 42).write(notes, 2)
    exit_note.leave(70, step=step, environ=environ)
    assert [note.step for note in ExitNote.read_all(notes)] == [noted]


def test_a_note_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    environ = Channel(tmp_path / "file" / "notes", tmp_path / "stop").environment()
    assert exit_note.leave(70, environ=environ) is False


def test_a_problem_of_an_earlier_attempt_ends_the_next_one_with_its_code(environ, notes):
    ExitNote(0, 70).write(notes)
    ExitNote(1, 66, problems=(PROBLEM,)).write(notes)
    assert exit_note.reason_not_to_retry(environ) == 66
    assert exit_note.reason_not_to_retry({**environ, "TORCHELASTIC_RESTART_COUNT": "0"}) is None
    assert exit_note.reason_not_to_retry({}) is None


def test_after_a_crash_another_attempt_removes_its_own_note_only(environ, notes):
    for rank in (2, 3):
        ExitNote(rank, 70).write(notes)
    (notes / "rank-1.json").write_text("half a no")
    assert exit_note.reason_not_to_retry(environ) is None
    assert [note.rank for note in ExitNote.read_all(notes)] == [2]


def test_a_run_has_started_once_it_is_marked_or_without_a_launcher_restarted(environ):
    assert not exit_note.has_started(environ)
    exit_note.mark_started(environ)
    assert exit_note.has_started(environ)
    exit_note.mark_started({})
    assert not exit_note.has_started({})
    assert exit_note.has_started({"TORCHELASTIC_RESTART_COUNT": "1"})
