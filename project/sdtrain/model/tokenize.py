"""Prompts as token ids of CLIP, and a warning of those that are too long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import torch
from transformers import CLIPTokenizer

_MAX_CHUNKS = 3  # max_token_length=225
_SHOWN = 60  # characters of a prompt in a warning


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str], chunks: int = 1) -> torch.Tensor:
    """Token ids, [B, chunks, 77]: each chunk is begin, 75 tokens, end, and padding; the rest of a prompt is cut.

    Chunks are how Stable Diffusion WebUI reads prompts that are longer than CLIP's input. All prompts get the same
    number of them, so that a prompt's encoding does not depend on its batch.
    """
    length = tokenizer.model_max_length
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = []
    for prompt in prompts:
        ids = _first_ids(tokenizer, prompt, chunks * (length - 2))
        for start in range(0, chunks * (length - 2), length - 2):
            row = [begin, *ids[start : start + length - 2], end]
            rows.append(row + [pad] * (length - len(row)))
    return torch.tensor(rows).view(-1, chunks, length)


@lru_cache(maxsize=1024)
def _first_ids(tokenizer: CLIPTokenizer, prompt: str, count: int) -> tuple[int, ...]:
    """The first tokens of a prompt: of one that is used in every step, or of a long caption, encoded once."""
    return tuple(tokenizer(prompt, add_special_tokens=False, truncation=False).input_ids[:count])


def clip_token_ids(
    tokenizers: Mapping[str, CLIPTokenizer], prompts: Sequence[str], chunks: int
) -> dict[str, torch.Tensor]:
    """Token ids [B, chunks, 77] by the names of the text encoders."""
    return {name: tokenize(tokenizer, prompts, chunks) for name, tokenizer in tokenizers.items()}


def length_warnings(
    tokenizers: Mapping[str, CLIPTokenizer], prompts: Mapping[str, Sequence[str]], chunks: int
) -> Iterator[str]:
    """A sentence for each group of prompts (by name) of which some are longer than 75 tokens per chunk."""
    tokenizer = tokenizers["text_encoder"]
    limit = chunks * (tokenizer.model_max_length - 2)
    for name, group in prompts.items():
        ids = tokenizer(list(group), add_special_tokens=False).input_ids if group else []
        cut = [prompt for prompt, tokens in zip(group, ids, strict=True) if len(tokens) > limit]
        if cut:
            remedy = "; max_token_length=225 keeps more of them" if chunks < _MAX_CHUNKS else ""
            yield (
                f"{len(cut)} of {len(group)} {name} prompts are longer than {limit} tokens and are cut, "
                f"such as {cut[0][:_SHOWN]!r}{remedy}"
            )
