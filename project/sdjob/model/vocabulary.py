"""CLIP's byte-pair vocabulary, for models that come without a tokenizer: all of Stable Diffusion share it.

The merges are OpenAI's (originals/LICENSE); the tokens and their numbers follow from them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).with_name("originals")
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = "clip_merges.txt.gz"
_WORD_END = "</w>"


def merges() -> list[str]:
    """The 48,894 merges, "left right", in the order in which they are applied."""
    return gzip.decompress((FOLDER / _MERGES).read_bytes()).decode().splitlines()


def vocab(merged: Sequence[str]) -> dict[str, int]:
    """Token → number: 256 bytes, the same at the end of a word, what the merges make, begin and end."""
    letters = _letters()
    made = (pair.replace(" ", "") for pair in merged)
    tokens = (*letters, *(letter + _WORD_END for letter in letters), *made, BEGIN, END)
    return {token: number for number, token in enumerate(tokens)}


def _letters() -> list[str]:
    """A printable letter for each byte, in OpenAI's order: those that are printable in Latin-1 first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]


def files() -> Mapping[str, str]:
    """vocab.json and merges.txt of a tokenizer folder, by their names."""
    merged = merges()
    return {
        "vocab.json": json.dumps(vocab(merged), ensure_ascii=False),
        "merges.txt": "\n".join(("#version: 0.2", *merged, "")),
    }
