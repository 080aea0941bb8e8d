"""Writing whole files or none, and through no link."""

import os
import stat
from pathlib import Path

import pytest

from sdjob import writing
from sdjob.writing import LinkError


def test_a_file_is_replaced_whole_and_not_through_a_link(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    writing.write_text(tmp_path / "link", "new ü\udcff")
    assert (tmp_path / "link").read_text() == "new ü\\udcff"
    assert ((tmp_path / "target").read_text(), (tmp_path / "link").is_symlink()) == ("mine", False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


@pytest.mark.parametrize("make", ["file", "folder", "nothing"])
def test_what_fails_leaves_the_file_as_it_was_and_nothing_else(tmp_path, make):
    (tmp_path / "report").write_text("old")
    with pytest.raises(ZeroDivisionError), writing.replacing(tmp_path / "report") as temporary:
        if make == "file":
            temporary.write_text("half")
        elif make == "folder":
            temporary.mkdir()
            (temporary / "half").touch()
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert (tmp_path / "report").read_text() == "old"


def test_until_it_is_complete_the_name_does_not_exist(tmp_path):
    with writing.replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
        assert not (tmp_path / "folder").exists()
        assert temporary.name.startswith(".")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


def test_a_durable_folder_is_synced_before_its_name_changes_and_readable_to_all(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(writing, "sync", lambda path: synced.append((path.name, (tmp_path / "x").exists())))
    with writing.replacing(tmp_path / "x", durable=True) as temporary:
        temporary.mkdir(mode=0o755)
        (temporary / "private").touch(mode=0o600)
    assert synced == [("private", False), (temporary.name, False), (tmp_path.name, True)]
    assert stat.S_IMODE((tmp_path / "x" / "private").stat().st_mode) == 0o644


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def canary(tmp_path):
    """A folder of the user outside the output folder, which must not change."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter").write_text("dear")
    yield folder
    assert contents(folder) == {"letter": "dear"}


@pytest.fixture
def output(tmp_path):
    """The output folder, which may be reached by a link itself."""
    (tmp_path / "real").mkdir()
    (tmp_path / "output").symlink_to("real")
    return tmp_path / "output"


def test_no_folder_is_made_through_a_link_below_the_root(output, canary):
    writing.make_folder(output / "logs" / "node-0", output)
    (output / "run").symlink_to(canary)
    (output / "logs" / "node-1").symlink_to("/nonexistent")
    for folder in ("run", "run/notes-0", "logs/node-1"):
        with pytest.raises(LinkError, match=r"a link to .*, through which nothing is written") as refused:
            writing.make_folder(output / folder, output)
        assert refused.value.filename == str(output / folder.removesuffix("/notes-0"))
    writing.make_folder(canary / "letter.d", output)  # elsewhere, as the user says
    (canary / "letter.d").rmdir()


def test_a_link_a_pipe_and_a_device_are_not_opened(output, canary):
    (output / "link").symlink_to(canary / "letter")
    (output / "dangling").symlink_to(canary / "new")
    (output / "device").symlink_to("/dev/zero")
    os.mkfifo(output / "pipe")
    for name in ("link", "dangling", "device"):
        with pytest.raises(LinkError, match=name):
            writing.opened(output / name, os.O_WRONLY | os.O_CREAT)
        with pytest.raises(LinkError, match=name):
            writing.touch(output / name)
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        with pytest.raises(OSError, match="pipe"):
            writing.opened(output / "pipe", flags)


def test_a_link_is_removed_and_not_what_it_leads_to(output, canary):
    (output / "folder").mkdir()
    (output / "folder" / "inner").symlink_to(canary)
    (output / "link").symlink_to(canary)
    (output / "file").touch()
    for name in ("folder", "link", "file", "missing"):
        writing.remove(output / name)
    assert list(output.iterdir()) == []


def test_what_a_link_leads_to_does_not_become_readable(output, canary):
    (canary / "letter").chmod(0o600)
    (output / "link").symlink_to(canary / "letter")
    writing.sync_tree(output)
    assert (canary / "letter").stat().st_mode & 0o777 == 0o600
