"""Writing whole files or none; reading and listing are tested through those who use it (tests/sdjob/dataset, model)."""

import stat

import pytest

from sdjob import files


def test_a_file_is_replaced_whole_and_not_through_a_link(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write_text(tmp_path / "link", "new ü\udcff")
    assert (tmp_path / "link").read_text() == "new ü\\udcff"
    assert ((tmp_path / "target").read_text(), (tmp_path / "link").is_symlink()) == ("mine", False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


@pytest.mark.parametrize("make", ["file", "folder", "nothing"])
def test_what_fails_leaves_the_file_as_it_was_and_nothing_else(tmp_path, make):
    (tmp_path / "report").write_text("old")
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "report") as temporary:
        if make == "file":
            temporary.write_text("half")
        elif make == "folder":
            temporary.mkdir()
            (temporary / "half").touch()
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert (tmp_path / "report").read_text() == "old"


def test_until_it_is_complete_the_name_does_not_exist(tmp_path):
    with files.replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
        assert not (tmp_path / "folder").exists()
        assert temporary.name.startswith(".")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


def test_a_durable_folder_is_synced_before_its_name_changes_and_readable_to_all(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append((path.name, (tmp_path / "x").exists())))
    with files.replacing(tmp_path / "x", durable=True) as temporary:
        temporary.mkdir(mode=0o755)
        (temporary / "private").touch(mode=0o600)
    assert synced == [("private", False), (temporary.name, False), (tmp_path.name, True)]
    assert stat.S_IMODE((tmp_path / "x" / "private").stat().st_mode) == 0o644


def test_the_cache_of_the_user(tmp_path, monkeypatch):
    assert files.user_cache({"XDG_CACHE_HOME": str(tmp_path / "xdg")}) == tmp_path / "xdg" / "sd-finetune"
    (tmp_path / "file").write_text("no folder can be made here")
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    assert files.user_cache({"XDG_CACHE_HOME": str(tmp_path / "file")}).parent == tmp_path
