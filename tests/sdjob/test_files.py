"""Tests of files: the user's cache; reading and listing are tested by who uses it (tests/sdjob/dataset, model)."""

from sdjob import files


def test_the_cache_of_the_user(tmp_path, monkeypatch):
    assert files.user_cache({"XDG_CACHE_HOME": str(tmp_path / "xdg")}) == tmp_path / "xdg" / "sd-finetune"
    (tmp_path / "file").write_text("no folder can be made here")
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    assert files.user_cache({"XDG_CACHE_HOME": str(tmp_path / "file")}).parent == tmp_path
