"""Which prompts are too long for the text encoder, and which need no tokenizer to know."""

import json

import pytest

from sdjob.model import prompts
from sdjob.model.pipeline import find_pipeline
from sdjob.problems import JobError
from tests.support.pipeline import make_fitting


@pytest.fixture
def model(tmp_path):
    return find_pipeline(make_fitting(tmp_path / "model"), None, allow_pickle=False)


def test_short_prompts_need_no_tokenizer(model, monkeypatch):
    monkeypatch.setattr(prompts, "count_tokens", None)
    assert prompts.too_long(["a" * 75, "", "ü" * 37], model) == []


def test_long_prompts_are_counted(model):
    assert prompts.too_long(["a " * 75, "a " * 76, "a" * 75, "a" * 76], model) == ["a " * 76, "a" * 76]
    assert prompts.too_long(["a " * 76, "a " * 150, "a " * 151], model, chunks=2) == ["a " * 151]


def test_the_shorter_of_two_limits_counts(model):
    assert prompts.max_tokens(model) == 77
    path = model.parts["tokenizer"].folder / "tokenizer_config.json"
    path.write_text(json.dumps({"model_max_length": 1e30}))
    assert prompts.max_tokens(model) == 77
    path.write_text(json.dumps({"model_max_length": 32}))
    assert prompts.max_tokens(model) == 32


def test_a_tokenizer_that_cannot_be_used(model):
    (model.parts["tokenizer"].folder / "vocab.json").write_text('{"a": 0}')  # without the mark of the end
    with pytest.raises(JobError) as caught:
        prompts.too_long(["a" * 76], model)
    assert caught.value.problems[0].subject == str(model.parts["tokenizer"].folder)
