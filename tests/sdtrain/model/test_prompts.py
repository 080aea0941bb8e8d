"""Tokens are counted as transformers' CLIPTokenizer counts them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from sddemo.pretrain.tokenizer import save_tokenizer
from sdjob.model import prompts

TEXT = """A photo of sks dog, sitting on the grass; it's the dog's best day! The artist's 1980s oil painting
of a café in Zürich at 10:30, we'll see. Высокое небо, 猫と犬, 東京タワー 🐈🐈 highly detailed, 8k, trending."""
PROMPTS = [
    "a photo of sks dog",
    "It's the dog's 1st DAY, we'll see: isn't he cute?!  (masterpiece:1.2), 8k, f/1.8 -- ar 16:9",
    "ünïcödé, ŁÓDŹ, ıİ, ß, ﬁne, Å Å, 東京タワーの猫 и небо",
    "🐈‍⬛ 👩🏽‍🚀 emoji ☕️ → ∞ ½ ²",
    "tabs\tand\nnewlines   and non-breaking spaces\u3000here",
    "a<|endoftext|>b <|startoftext|> c",
    "क़ख़ decomposes; ऩ",
    "",
    " ",
    "0123456789 " * 9,
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(the reference, the folder that it is saved in) for a tokenizer whose merges were learned from some text."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)]
    )
    trained.train_from_iterator(
        [TEXT.lower()] * 3, trainers.BpeTrainer(end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    folder = tmp_path_factory.mktemp("tokenizer")
    reference = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    save_tokenizer(reference, folder)
    assert len(merges) > 100
    return reference, folder


@pytest.mark.parametrize("prompt", PROMPTS)
def test_real_prompts(pair, prompt):
    reference, folder = pair
    assert prompts.count_tokens([prompt], folder) == [len(reference(prompt).input_ids)]


@given(st.lists(st.text(max_size=120), min_size=1, max_size=40))
@settings(max_examples=15, deadline=None)
def test_any_text(pair, texts):
    """Also that what surely fits does fit: no token is less than a byte."""
    reference, folder = pair
    tokens = [len(reference(text).input_ids) for text in texts]
    assert prompts.count_tokens(texts, folder) == tokens
    sure = [count for text, count in zip(texts, tokens, strict=True) if prompts._surely_fits(text, 77)]
    assert max(sure, default=0) <= 77


def test_a_tokenizer_that_is_stored_whole(pair):
    reference, folder = pair
    for name in ("vocab.json", "merges.txt"):
        (folder / name).rename(folder / f"{name}.aside")
    assert prompts.count_tokens(PROMPTS, folder) == [len(reference(prompt).input_ids) for prompt in PROMPTS]
