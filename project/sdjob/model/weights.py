"""Weight files, judged by their names and headers: no tensor is read, and torch is not needed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdjob.files import few, list_folder, read_file, read_json, shown, unreadable
from sdjob.problems import JobError, Problem, bad_input

_MAX_HEADER = 100_000_000  # the format's own limit
ITEM_SIZE = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_AGAIN = "download or copy this file again"


@dataclass(frozen=True)
class Tensor:
    """What a header says of a tensor, and the file that holds it."""

    shape: tuple[int, ...]
    file: Path


@dataclass(frozen=True)
class Weights:
    """The weight files in a folder, and what their headers say. Of pickles no tensor is known."""

    files: tuple[Path, ...]
    num_bytes: int
    num_parameters: int
    variant: str | None
    pickled: bool = False
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


def find_weights(folder: Path, stem: str, pickle_stem: str, *, allow_pickle: bool) -> Weights:
    """The weights in a folder: safetensors if any, else pickles if allowed. Raises JobError, OSError."""
    names = list_folder(folder).files
    safe, pickles = _variants(names, stem, "safetensors"), _variants(names, pickle_stem, "bin")
    variants = safe or pickles
    if not variants:
        found = f"no weights ({stem}.safetensors); found {few(names) or 'nothing'}"
        raise JobError(bad_input(shown(folder), found, "copy the weights into this folder"))
    if None not in variants and len(variants) > 1:
        found = f"weights only as variants: {few(map(str, variants))}"
        raise JobError(bad_input(shown(folder), found, "keep one of them in this folder"))
    variant = None if None in variants else next(iter(variants))
    file = folder / variants[variant]
    return _safetensors(file, variant) if safe else _pickles(file, variant, allow_pickle)


def _variants(names: Sequence[str], stem: str, suffix: str) -> dict[str | None, str]:
    """Variant → its file, or the index of its shards: model.fp16.bin, model.safetensors.index.json, …"""
    pattern = re.compile(rf"{stem}(?:\.(\w+))?\.{suffix}(?:\.index(?:\.(\w+))?\.json)?")
    return {match[1] or match[2]: name for name in names if (match := pattern.fullmatch(name))}


def _safetensors(file: Path, variant: str | None) -> Weights:
    """One file, or all shards of an index, each proven whole. Raises JobError with all problems."""
    shards = _read_index(file) if file.suffix == ".json" else {file: frozenset[str]()}
    problems: list[Problem] = []
    num_bytes = num_parameters = 0
    found: dict[str, Tensor] = {}
    for shard, names in shards.items():
        try:
            tensors = read_header(shard)
        except JobError as error:
            problems += error.problems
            continue
        num_bytes += sum(tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in tensors.values())
        num_parameters += _count(tensors)
        found |= {name: Tensor(tuple(tensor["shape"]), shard) for name, tensor in tensors.items()}
        if absent := sorted(names - tensors.keys()):
            lack = f"lacks {few(absent, 3)}, which {file.name} says it holds"
            problems.append(bad_input(shown(shard), lack, _AGAIN))
    if problems:
        raise JobError(problems)
    return Weights(tuple(shards), num_bytes, num_parameters, variant, tensors=found)


def _pickles(file: Path, variant: str | None, allow_pickle: bool) -> Weights:
    """Weights that only pickles hold: nothing can be said of them but that they are there."""
    if not allow_pickle:
        raise JobError(
            bad_input(
                shown(file),
                "the weights exist only as a pickle, which can run code when it is loaded",
                "use a pipeline with .safetensors files, or trust this one with allow_pickle=1",
            )
        )
    files = tuple(_read_index(file)) if file.suffix == ".json" else (file,)
    for path in files:
        read_file(path, 1)
    num_bytes = sum(path.stat().st_size for path in files)
    width = 2 if variant in ("fp16", "bf16") else 4
    return Weights(files, num_bytes, num_bytes // width, variant, pickled=True)


def _read_index(path: Path) -> dict[Path, frozenset[str]]:
    """An index of shards: file → the tensors that it must hold. Raises JobError."""
    shards: dict[str, set[str]] = {}
    try:
        for tensor, shard in read_json(path)["weight_map"].items():
            if Path(shard).name != shard:
                raise ValueError(f"{shard!r} is not a file name")
            shards.setdefault(shard, set()).add(tensor)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"is not an index of weight files ({error!r})"
        raise JobError(bad_input(shown(path), found, _AGAIN)) from error
    return {path.with_name(shard): frozenset(tensors) for shard, tensors in sorted(shards.items())}


class _BrokenError(Exception):
    """What is wrong with a safetensors file."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself; offsets of tensors count from `begin`, in bytes."""

    tensors: Mapping[str, Any]  # name → {dtype, shape, data_offsets}
    metadata: Mapping[str, str]
    begin: int


def read_header(path: Path) -> dict[str, Any]:
    """Tensor → {dtype, shape, data_offsets} of a safetensors file, proven whole. Raises JobError."""
    return dict(whole_header(path).tensors)


def whole_header(path: Path) -> Header:
    """The header of a safetensors file, proven whole. Raises JobError.

    The layout: 8 bytes with the header's length (little endian), the header (JSON), the tensors' bytes.
    Whole means: the tensors follow each other without a gap, and the file ends where the last one does.
    """
    length = int.from_bytes(read_file(path, 8), "little")
    try:
        size = path.stat().st_size
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            raise _BrokenError(_no_header(size, length))
        with path.open("rb") as file:
            file.seek(8)
            tensors, metadata = _parsed(file.read(length))
        _check_extent(tensors, size - 8 - length, size)
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    except _BrokenError as error:
        raise JobError(bad_input(shown(path), str(error), _AGAIN)) from error
    return Header(tensors, metadata, 8 + length)


def _no_header(size: int, length: int) -> str:
    if size >= 8 and length <= _MAX_HEADER:
        return f"is truncated: {size:,} bytes, its header alone takes {length + 8:,}"
    return f"is no safetensors file ({size:,} bytes without a header)"


def _parsed(header: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of the header, each tensor as large as its type and shape say."""
    try:
        tensors = json.loads(header)
        metadata = dict(tensors.pop("__metadata__", None) or {})
        for name, tensor in tensors.items():
            begin, end = tensor["data_offsets"]
            item_size = ITEM_SIZE.get(tensor["dtype"])
            if item_size is not None and end - begin != item_size * math.prod(tensor["shape"]):
                raise _BrokenError(f"has a damaged header: {name} does not have the bytes of its shape")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _BrokenError("has a damaged header") from error
    return dict(tensors), metadata


def _check_extent(tensors: dict[str, Any], data_bytes: int, size: int) -> None:
    """That the tensors cover the rest of the file exactly."""
    position = 0
    for begin, end, name in sorted((*tensor["data_offsets"], name) for name, tensor in tensors.items()):
        if begin != position or end < begin:
            raise _BrokenError(f"has a damaged header: {name} lies at {begin:,}, expected {position:,}")
        position = end
    if position != data_bytes:
        what = "is truncated" if data_bytes < position else "is longer than its header says"
        raise _BrokenError(f"{what}: {size:,} bytes, expected {size - data_bytes + position:,}")


def _count(tensors: dict[str, Any]) -> int:
    """Floating-point numbers; index buffers such as position_ids are not parameters."""
    return sum(math.prod(tensor["shape"]) for tensor in tensors.values() if "F" in tensor["dtype"])
