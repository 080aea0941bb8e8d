"""Where compiled code is kept."""

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


def test_what_the_user_has_set_stays_and_nothing_is_set_without_compiling(tmp_path):
    environ = {"TORCHINDUCTOR_CACHE_DIR": "/mine"}
    assert compile_caches.use(spec(), OutputLayout(tmp_path), environ) == ""
    assert environ == {"TORCHINDUCTOR_CACHE_DIR": "/mine"}
    assert compile_caches.use(spec(compile="off"), OutputLayout(tmp_path), none := {}) == ""
    assert none == {}


def test_code_is_not_loaded_from_a_folder_that_others_can_write(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = tmp_path / "cache/compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    reason = compile_caches.use(spec(), OutputLayout(tmp_path), environ := {})
    assert reason == f"{folder} can be written by others, and code is loaded from there"
    assert str(folder) not in str(environ)
    assert environ["TORCHINDUCTOR_CACHE_DIR"].startswith(f"{tmp_path}/compiled-")
