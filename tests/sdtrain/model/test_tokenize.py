"""Tests of tokenize: what the text encoders get of a prompt, and warnings of what is cut."""

import json
import shutil

import pytest
import torch

from sdjob.model.pipeline import find_pipeline
from sdtrain.model import load, tokenize

SHORT, LONG = "a red cross", "a red cross " * 40


def loaded(folder):
    return load.load(
        find_pipeline(folder, None, allow_pickle=False), "no", torch.device("cpu"), allow_pickle=False
    )


@pytest.fixture
def tokenizer(eps_model):
    return loaded(eps_model).tokenizers["text_encoder"]


def test_prompts_are_padded_and_cut_as_by_the_pipeline(tokenizer):
    for pad in (tokenizer.pad_token, "!"):  # "!" is that of SDXL's second tokenizer
        tokenizer.pad_token = pad
        found = tokenize.tokenize(tokenizer, [SHORT, LONG])
        wanted = tokenizer(
            [SHORT, LONG], padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        assert torch.equal(found, wanted[:, None])


def test_a_prompt_of_every_step_is_encoded_once(tokenizer, monkeypatch):
    seen = []

    def counted(self, prompt, **how):
        seen.append(prompt)
        return encode(self, prompt, **how)

    encode = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    first = tokenize.tokenize(tokenizer, [SHORT, LONG, SHORT])
    assert torch.equal(tokenize.tokenize(tokenizer, [LONG]), first[1:2]) and seen == [SHORT, LONG]


@pytest.mark.parametrize(
    ("prompts", "chunks", "warnings"),
    [
        ([SHORT, LONG], 1, ["1 of 2 caption prompts are longer than 75 tokens and are cut, such as 'a red"]),
        ([SHORT, LONG], 3, []),
        ([LONG * 3], 3, ["1 of 1 caption prompts are longer than 225 tokens and are cut, such as 'a red"]),
        ([], 1, []),
    ],
)
def test_warnings_of_prompts_that_are_cut(tokenizer, prompts, chunks, warnings):
    found = list(tokenize.length_warnings({"text_encoder": tokenizer}, {"caption": prompts}, chunks))
    assert [text.split(" cross")[0] for text in found] == warnings
    assert all(("max_token_length=225" in text) == (chunks < 3) for text in found)


def test_a_tokenizer_without_a_length_gets_that_of_the_encoder(eps_model, tmp_path):
    folder = shutil.copytree(eps_model, tmp_path / "model")
    path = folder / "tokenizer/tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["model_max_length"]
    path.write_text(json.dumps(config))
    assert tokenize.tokenize(loaded(folder).tokenizers["text_encoder"], [SHORT]).shape == (1, 1, 77)
