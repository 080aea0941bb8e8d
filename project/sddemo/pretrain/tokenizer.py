"""An offline CLIP tokenizer: the world's words are one token each, any other text falls back to bytes."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from sddemo.scenes import COLOURS, GROUNDS, SHAPES

MODEL_MAX_LENGTH = 77  # as in the real CLIP, so that trainers need no special case
WORDS = ("a", "an", "on", "of", "the", "ground", "photo", "picture", "drawing", *SHAPES, *COLOURS, *GROUNDS)


def new_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer whose merges spell WORDS and nothing else; the end token also pads."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=100_000, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator(WORDS, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(
        vocab=vocab, merges=merges, pad_token="<|endoftext|>", model_max_length=MODEL_MAX_LENGTH
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes tokenizer.json, and the vocab.json and merges.txt that transformers 4 reads."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
