"""How many tokens of CLIP a prompt has, without transformers: only `tokenizers`, and only for long prompts.

`python -m sdjob.model.prompts FOLDER` reads a JSON list of prompts, and writes the list of their tokens.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sdjob.files import read_file, read_json, shown
from sdjob.model import vocabulary
from sdjob.model.pipeline import PipelineFolder
from sdjob.model.shapes import TEXT_DEFAULTS
from sdjob.problems import JobError, bad_input

Count = Callable[[Sequence[str], Path], list[int]]

_MARKS = 2  # begin and end count as well
# OpenAI's CLIP, simple_tokenizer.py: contractions, words, single digits, runs of anything else.
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def max_tokens(model: PipelineFolder, chunks: int = 1) -> int:
    """Tokens of a prompt that the text encoder sees, begin and end included: 77, or 2 + 75 for each chunk."""
    config = model.parts["text_encoder"].config
    places = int(config.get("max_position_embeddings", TEXT_DEFAULTS["max_position_embeddings"]))
    path = model.parts["tokenizer"].folder / "tokenizer_config.json"
    said = read_json(path).get("model_max_length") if path.is_file() else None
    length = min(places, int(said)) if isinstance(said, int | float) else places
    return chunks * (length - _MARKS) + _MARKS


def too_long(
    prompts: Iterable[str], model: PipelineFolder, count: Count | None = None, chunks: int = 1
) -> list[str]:
    """The prompts that are cut. `count`: how they are counted, if any must be (`count_tokens`). Raises JobError."""
    limit = max_tokens(model, chunks)
    doubtful = [prompt for prompt in prompts if not _surely_fits(prompt, limit)]
    if not doubtful:
        return []
    counts = (count or count_tokens)(doubtful, model.parts["tokenizer"].folder)
    return [prompt for prompt, count in zip(doubtful, counts, strict=True) if count > limit]


def _surely_fits(prompt: str, limit: int) -> bool:
    """Every token stands for at least one byte of the normal form, so a short prompt needs no count."""
    if not prompt.isascii():
        prompt = unicodedata.normalize("NFC", prompt).lower()
    return len(prompt.encode(errors="replace")) + _MARKS <= limit


def count_tokens(prompts: Sequence[str], folder: Path) -> list[int]:
    """Tokens of each prompt, begin and end included, by the tokenizer in a folder. Raises JobError.

    `vocabulary.FOLDER` stands for CLIP's own.
    """
    try:
        tokenizer = _tokenizer(folder)
        # One by one: in batches it starts threads, and warns of every process that is started afterwards.
        texts = [prompt.encode(errors="replace").decode() for prompt in prompts]  # bytes that were no UTF-8
        return [len(tokenizer.encode(text, add_special_tokens=False).ids) + _MARKS for text in texts]
    except (JobError, ModuleNotFoundError):
        raise
    except Exception as error:  # tokenizers raises nothing more special
        remedy = "copy the tokenizer of the pipeline again (save_pretrained writes all of it)"
        raise JobError(
            bad_input(shown(folder), f"is no tokenizer that can be used ({error})", remedy)
        ) from error


def _tokenizer(folder: Path) -> Any:
    if folder == vocabulary.FOLDER:
        merges = vocabulary.merges()
        return _clip(vocabulary.vocab(merges), merges)
    if not (folder / "vocab.json").is_file():
        return _stored(folder / "tokenizer.json")
    lines = read_file(folder / "merges.txt").decode().split("\n")
    merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    return _clip(read_json(folder / "vocab.json"), merges)


def _clip(vocab: dict[str, int], lines: Iterable[str]) -> Any:
    """CLIP's byte-pair encoding of lower-case text, as transformers' CLIPTokenizer builds it."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    pairs = (line.split() for line in lines)
    merges = [(left, right) for left, right in pairs]
    bpe = models.BPE(
        vocab, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=vocabulary.END
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pieces = pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.add_special_tokens([vocabulary.BEGIN, vocabulary.END])
    return tokenizer


def _stored(path: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def main() -> None:
    """Counts for another process, whose memory a vocabulary would fill for good."""
    try:
        answer: dict[str, Any] = {"counts": count_tokens(json.load(sys.stdin), Path(sys.argv[1]))}
    except JobError as error:
        answer = {"problems": [problem.to_dict() for problem in error.problems]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
