"""Where compiled code is kept."""

import os

import pytest

from sdjob.output.layout import OutputLayout
from sdjob.settings.run_spec import RunSpec
from sdtrain.runtime import compile_caches


def spec(**values):
    return RunSpec(pretrained_model_name_or_path="m", output_dir="o", **{"compile": "whole", **values})


def test_compiled_code_is_kept_with_the_other_caches(tmp_path):
    environ = {}
    assert compile_caches.use(spec(), OutputLayout(tmp_path), environ) == ""
    folder = tmp_path / "cache/compiled"
    assert environ == {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
    elsewhere = {}
    compile_caches.use(spec(cache_dir=str(tmp_path / "other")), OutputLayout(tmp_path), elsewhere)
    assert elsewhere["TRITON_CACHE_DIR"] == str(tmp_path / "other/compiled/triton")


def test_the_folder_is_private_whatever_the_umask(tmp_path):
    """A group may share the output folder, and its umask."""
    before = os.umask(0o002)
    try:
        for _ in range(2):
            assert compile_caches.use(spec(), OutputLayout(tmp_path), {}) == ""
    finally:
        os.umask(before)
    assert (tmp_path / "cache/compiled").stat().st_mode & 0o777 == 0o700


def test_a_link_is_refused(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/compiled").symlink_to(tmp_path)
    with pytest.raises(OSError, match="a link to"):
        compile_caches.use(spec(), OutputLayout(tmp_path), {})


def test_what_the_user_has_set_stays_and_nothing_is_set_without_compiling(tmp_path):
    environ = {"TORCHINDUCTOR_CACHE_DIR": "/mine"}
    assert compile_caches.use(spec(), OutputLayout(tmp_path), environ) == ""
    assert environ == {"TORCHINDUCTOR_CACHE_DIR": "/mine"}
    assert compile_caches.use(spec(compile="off"), OutputLayout(tmp_path), none := {}) == ""
    assert none == {}


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
def test_code_is_not_loaded_from_a_folder_that_others_can_write(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = tmp_path / "cache/compiled"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    reason = compile_caches.use(spec(), OutputLayout(tmp_path), environ := {})
    assert reason == f"{folder} can be written by others, and code is loaded from there"
    assert str(folder) not in str(environ)
    assert environ["TORCHINDUCTOR_CACHE_DIR"].startswith(f"{tmp_path}/compiled-")
