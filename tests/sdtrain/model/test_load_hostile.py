"""Model folders that are made to do harm, loaded by the worker's part alone. Tests of load."""

import json
import os
import shutil

import pytest
import torch

from tests.support.worker import snapshot


@pytest.fixture
def model(eps_model, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(eps_model, tmp_path / "model")


def test_only_components_of_the_pipeline_are_copied_to_the_result(train, model, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    index = json.loads((model / "model_index.json").read_text())
    index |= {"../private": [None, None], str(tmp_path / "private"): [None, None]}
    (model / "model_index.json").write_text(json.dumps(index))
    output = train(pretrained_model_name_or_path=model, max_train_steps=1)
    assert not [name for name in snapshot(output) if "key" in name or "private" in name]


class Code:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    ("in_archive", "found"), [(True, "calls posix.mkdir"), (False, "in torch's old format")]
)
def test_code_in_an_allowed_pickle_is_not_run_and_is_66(
    train, model, tmp_path, monkeypatch, capsys, in_archive, found
):
    monkeypatch.chdir(tmp_path)
    (model / "text_encoder" / "model.safetensors").unlink()
    torch.save(
        {"weight": Code()},
        model / "text_encoder" / "pytorch_model.bin",
        _use_new_zipfile_serialization=in_archive,
    )
    train(pretrained_model_name_or_path=model, allow_pickle=True, code=66)
    error = capsys.readouterr().err
    assert found in error and "Traceback" not in error
    assert not (tmp_path / "harmed").exists()


def test_a_tokenizer_that_its_library_does_not_read_is_66(train, model, capsys):
    (model / "tokenizer" / "vocab.json").write_text('{"a": "b"}')
    (model / "tokenizer" / "merges.txt").write_text("#version: 0.2\nx\n")
    train(pretrained_model_name_or_path=model, code=66)
    assert "Traceback" not in capsys.readouterr().err
