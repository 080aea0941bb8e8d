"""What launcher and worker say to each other comes back as it was said, and is spelled in one module alone."""

import ast
import os
import signal
from pathlib import Path

import pytest

from sdjob import protocol, writing
from sdjob.problems import bad_input
from sdjob.protocol import Channel, ExitNote, Heartbeat, OutputLine
from sdjob.writing import LinkError

PROJECT = Path(protocol.__file__).parents[1]
OTHERS = sorted({*PROJECT.rglob("*.py"), PROJECT.parent / "entrypoint.py"} - {Path(protocol.__file__)})

NOTES = [
    ExitNote(0, 75, step=0, time=1.5),
    ExitNote(11, 70, error="ValueError('ü')", traceback="Traceback …\n"),
    ExitNote(3, 66, step=7, problems=(bad_input("row 3", "no image", "Take it out."),)),
]
DAMAGED = [
    b"",
    b'{"rank": 0, "co',
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"rank": "x", "code": 70, "pid": "x"}',
    b"4711",
]


@pytest.mark.parametrize("note", NOTES)
def test_an_exit_note_comes_back(tmp_path, note):
    folder = tmp_path / "new" / "notes"
    note.write(folder)
    assert ExitNote.read_all(folder) == (note,)
    assert len(list(folder.iterdir())) == 1  # nothing temporary


def test_all_exit_notes_are_read_and_one_is_removed(tmp_path):
    for note in NOTES:
        note.write(tmp_path)
    assert set(ExitNote.read_all(tmp_path)) == set(NOTES)
    for _ in range(2):  # the second time there is nothing to remove
        ExitNote.remove(tmp_path, 11)
    assert {note.rank for note in ExitNote.read_all(tmp_path)} == {0, 3}


@pytest.mark.parametrize("beat", [Heartbeat(1, "start"), Heartbeat(4_000_000, "étape", 10**9)])
def test_a_heartbeat_comes_back_over_a_longer_one(tmp_path, beat):
    Heartbeat(99999, "a much longer stage, as it came before", 123456).write(tmp_path, 12)
    beat.write(tmp_path, 12)
    assert Heartbeat.read_all(tmp_path) == {12: beat}
    assert not (tmp_path / "alive-12").stat().st_mode & 0o111  # not executable


def test_the_time_of_the_newest_heartbeat_is_the_last_sign_of_life(tmp_path):
    assert Heartbeat.last(tmp_path) == 0
    for rank, seconds in ((0, 100), (1, 300), (2, 200)):
        Heartbeat(1, "step").write(tmp_path, rank)
        os.utime(tmp_path / f"alive-{rank}", (seconds, seconds))
    assert Heartbeat.last(tmp_path) == 300
    Heartbeat(1, "step").write(tmp_path, 0)
    assert Heartbeat.last(tmp_path) > 1e9


def test_a_heartbeat_that_vanishes_is_not_counted(tmp_path):
    (tmp_path / "alive-7").symlink_to(tmp_path / "vanished")
    assert Heartbeat.last(tmp_path) == 0


def test_touching_the_file_is_a_sign_of_life_as_documented_for_scripts(tmp_path):
    Path(Channel(tmp_path, tmp_path / "stop").environment()["SDJOB_NOTES_DIR"], "alive-1").touch()
    assert Heartbeat.last(tmp_path) > 1e9
    assert Heartbeat.read_all(tmp_path) == {}


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_message_is_none(tmp_path, content):
    (tmp_path / "rank-0.json").write_bytes(content)
    (tmp_path / "alive-0").write_bytes(content)
    assert Heartbeat.read(tmp_path, 0) is None
    assert (ExitNote.read_all(tmp_path), Heartbeat.read_all(tmp_path)) == ((), {})


@pytest.mark.parametrize(
    "values",
    [
        '"rank": 0, "code": 70, "time": NaN',
        '"rank": 0, "code": 70, "time": 1e300',
        '"rank": 0, "code": 25600',  # a process would end with 0
        '"rank": 0, "code": -1',
        '"pid": 1, "stage": "train", "total": 1%s' % ("0" * 400),
        '"pid": 1, "stage": "train", "seconds_left": NaN',
    ],
)
def test_numbers_that_no_worker_writes_are_none(tmp_path, values):
    for name in ("rank-0.json", "alive-0"):
        (tmp_path / name).write_text(f"{{{values}}}")
    assert (ExitNote.read_all(tmp_path), Heartbeat.read_all(tmp_path)) == ((), {})


def test_foreign_files_and_folders_are_none(tmp_path):
    for name in ("rank-x.json", "rank-.json", "alive-", "alive-x", "rank-0.json.old"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "rank-5.json").mkdir()
    (tmp_path / "alive-5").mkdir()
    assert (ExitNote.read_all(tmp_path), Heartbeat.read_all(tmp_path)) == ((), {})
    assert ExitNote.read_all(tmp_path / "missing") == ()
    assert Heartbeat.read(tmp_path / "missing", 0) is None


def test_a_heartbeat_follows_no_link(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "alive-0").symlink_to(tmp_path / "target")
    with pytest.raises(OSError):
        Heartbeat(1, "step").write(tmp_path, 0)
    assert (tmp_path / "target").read_text() == "mine"


def test_the_worker_finds_the_channel_of_its_node(tmp_path):
    channel = Channel.of_node(tmp_path, 3)
    environ = channel.environment()
    assert protocol.notes_folder(environ) == channel.notes == tmp_path / "notes-3"
    assert protocol.stop_file(environ) == channel.stop_file == tmp_path / "stop-3"
    assert (protocol.notes_folder({}), protocol.stop_file({})) == (None, None)
    assert protocol.stacks_file(channel.notes, 5) == tmp_path / "notes-3" / "stacks-of-rank-5"
    assert not protocol.has_started(channel.notes)
    protocol.mark_started(channel.notes)
    assert protocol.has_started(channel.notes)


def test_a_channel_is_cleared_for_a_new_run_and_removed_after_it(tmp_path):
    run = tmp_path / "run"  # does not exist yet
    channel = Channel.of_node(run, 0)
    channel.clear()
    NOTES[0].write(channel.notes)
    NOTES[0].write(channel.notes / ".hidden")
    channel.stop_file.touch()
    channel.clear()
    assert [path.name for path in run.rglob("*")] == ["notes-0"]
    channel.remove()
    assert list(run.iterdir()) == []


def test_a_folder_of_notes_that_cannot_be_removed_is_emptied(tmp_path, monkeypatch):
    """As on a network mount, while a process has a file open there."""
    channel = Channel.of_node(tmp_path, 0)
    NOTES[0].write(channel.notes)
    (channel.notes / ".nfs0001").touch()
    monkeypatch.setattr(writing.shutil, "rmtree", lambda *_, **__: None)
    channel.clear()
    assert [path.name for path in channel.notes.iterdir()] == [".nfs0001"]


@pytest.mark.parametrize("rank", [0, 17, None])
def test_a_line_of_output_comes_back_with_its_rank_and_whether_it_is_progress(rank):
    said = "step   1/9  loss 1"
    assert OutputLine.of(rank, said) == OutputLine(rank, said, False)
    assert OutputLine.of(rank, protocol.progress_line(said)) == OutputLine(rank, said, True)
    assert str(OutputLine(17, "x")) == "[rank 17] x"


def test_a_worker_introduces_itself():
    assert protocol.introduced(protocol.introduction(17, 2).rstrip()) == (17, 2)
    assert protocol.introduced(b"rank 17, attempt 2") is None


def test_the_pipe_of_a_worker():
    environ = {**protocol.launcher_variables(Path("/x")), "LOCAL_RANK": "3"}
    assert protocol.own_pipe(environ) == protocol.pipe(Path("/x"), 3) == Path("/x/3")
    assert protocol.own_pipe(protocol.launcher_variables(Path("/x"))) is None
    assert protocol.own_pipe({"LOCAL_RANK": "3"}) is None


# --- one module --------------------------------------------------------------------------------------

LITERALS = {
    value.partition("{}")[0] for value in vars(protocol).values() if isinstance(value, str) and len(value) > 3
} & {
    node.value.partition("{}")[0]
    for node in ast.walk(ast.parse(Path(protocol.__file__).read_text()))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
} - {"sdjob", "sdjob.protocol", protocol.__doc__}
SIGNALS = {value.name for value in vars(protocol).values() if isinstance(value, signal.Signals)}


def test_the_literals_of_the_protocol_are_known():
    assert {"SDJOB_NOTES_DIR", "SDJOB_STOP_FILE", "alive-", "rank-", "notes-", "stop-", "started"} <= LITERALS
    assert {"SIGURG"} == SIGNALS


def spelled(path: Path) -> set[str]:
    """The strings and attributes of a module that belong to the protocol."""
    tree = ast.parse(path.read_text())
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & SIGNALS
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = (text for text in LITERALS if text.endswith("-") and node.value.startswith(text))
            found |= {node.value} & LITERALS | set(names)
    return found


def test_no_literal_of_the_protocol_is_spelled_elsewhere():
    found = {path.name: words for path in OTHERS if (words := spelled(path))}
    # The log of a rank, which is not a message; the ranks of a LoRA; and the split of a dataset.
    assert found == {"layout.py": {"rank-"}, "run_spec.py": {"rank-"}, "splits.py": {"train"}}
    assert spelled(Path(protocol.__file__)) >= SIGNALS


def test_messages_are_never_written_or_removed_through_a_link(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    run = tmp_path / "output" / "run"
    run.mkdir(parents=True)
    channel = Channel.of_node(run, 0)
    channel.notes.symlink_to(tmp_path / "mine")
    for write in (
        lambda: NOTES[0].write(channel.notes),
        lambda: Heartbeat(1, "step").write(channel.notes, 0),
    ):
        with pytest.raises(LinkError, match="notes-0"):
            write()
    with pytest.raises(LinkError, match="notes-0"):
        protocol.mark_started(channel.notes)
    channel.clear()  # the link goes, and a folder takes its place
    assert channel.notes.is_dir() and not channel.notes.is_symlink()
    protocol.stacks_file(channel.notes, 0).symlink_to(tmp_path / "mine" / "letter")
    with pytest.raises(LinkError, match="stacks"):
        protocol.open_stacks(channel.notes, 0)
    channel.remove()
    channel.notes.symlink_to(tmp_path / "mine")
    channel.stop_file.symlink_to(tmp_path / "mine" / "letter")
    channel.remove()
    assert list(run.iterdir()) == []
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["dear"]
