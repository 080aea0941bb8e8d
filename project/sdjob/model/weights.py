"""Weight files, judged by their names and headers: no tensor is loaded, and torch is not needed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdjob import reading
from sdjob.files import few, list_folder, read_file, read_json, shown, unreadable
from sdjob.model.architectures import ARCHITECTURE_FACTS
from sdjob.problems import JobError, Problem, bad_input

COPY_AGAIN = "copy the whole pipeline folder again (save_pretrained writes all of it)"
_NUMBERS = (
    "in_channels",
    "latent_channels",
    *{row.conditioning_width[0] for row in ARCHITECTURE_FACTS.values()},
    "hidden_size",
    "vocab_size",
    "max_position_embeddings",
    "projection_dim",
)
_LISTS = {"block_out_channels": int, "down_block_types": str, "up_block_types": str}
_MOST = {"layers": 1000, "": 1 << 24}  # in names of values → more than any known model has
MAX_AXES = 16  # of a tensor
MAX_NAME = 1000  # characters of the name of a tensor
_MAX_SIZE = 1 << 63  # of a tensor, in numbers or bytes
_MAX_SHARDS = 10_000
_MAX_FILE_NAME = 255  # bytes, of Linux
_MAX_HEADER = (
    16 << 20
)  # bytes, many times those of any known model; as values of Python they take thirty times as much
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
    dtype: str = "F32"  # safetensors' name of the type

    @property
    def num_bytes(self) -> int:
        return ITEM_SIZE.get(self.dtype, 1) * math.prod(self.shape)

    @property
    def num_parameters(self) -> int:
        """0 for index buffers such as position_ids."""
        return math.prod(self.shape) if "F" in self.dtype else 0


@dataclass(frozen=True)
class Part:
    """One part of a pipeline. Of pickled weights there are no tensors, and parameters are estimated from the bytes."""

    folder: Path
    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    weights: tuple[Path, ...] = ()
    num_bytes: int = 0  # size of all tensors
    num_parameters: int = 0
    variant: str | None = None  # "fp16" for model.fp16.safetensors, where it is the only file
    pickled: bool = False
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def with_tensors(
        self, files: Iterable[Path], tensors: Mapping[str, Tensor], variant: str | None = None
    ) -> Part:
        return replace(
            self,
            weights=tuple(files),
            num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
            num_parameters=sum(tensor.num_parameters for tensor in tensors.values()),
            variant=variant,
            tensors=tensors,
        )


def read_config(path: Path) -> dict[str, Any]:
    """The config of a part, in which the values that this project reads are of their type. Raises JobError.

    A number of layers that no model has would take all memory before a weight is read.
    """
    config = read_json(path)
    for key, value in config.items():
        most = next(limit for word, limit in _MOST.items() if word in key)
        if key in _NUMBERS and value is not None and (type(value) is not int or not 0 < value <= most):
            wanted = f"a whole number from 1 to {most:,}"
        elif key in _LISTS and not _is_list(value, _LISTS[key]):
            wanted = "a list of names" if _LISTS[key] is str else f"a list of numbers from 1 to {most:,}"
        elif "layers" in key and any(number > most for number in _flat(value)):
            wanted = f"at most {most:,}"
        else:
            continue
        raise JobError(
            bad_input(shown(path), f"has {shown(key)}={str(value)[:40]}, not {wanted}", COPY_AGAIN)
        )
    return {key: value for key, value in config.items() if key not in _NUMBERS or value is not None}


def _is_list(value: Any, kind: type[int | str]) -> bool:
    """Whether it is one of as many values of a type as a model may have layers, of which numbers are such sizes."""
    if not isinstance(value, list) or not 0 < len(value) <= _MOST["layers"]:
        return False
    return all(type(each) is kind and (isinstance(each, str) or 0 < each <= _MOST[""]) for each in value)


def _flat(value: Any) -> Iterator[float]:
    """The numbers in nested lists."""
    if isinstance(value, list):
        for each in value:
            yield from _flat(each)
    elif isinstance(value, (int, float)):
        yield value


def with_weights(part: Part, stem: str, pickle_stem: str, *, allow_pickle: bool) -> Part:
    """The part with the weights in its folder: safetensors if any, else pickles if allowed. Raises JobError."""
    names = list_folder(part.folder).files
    safe, pickles = _variants(names, stem, "safetensors"), _variants(names, pickle_stem, "bin")
    variants = safe or pickles
    if not variants:
        found = f"no weights ({stem}.safetensors); found {few(names) or 'nothing'}"
        raise JobError(bad_input(shown(part.folder), found, "copy the weights into this folder"))
    if None not in variants and len(variants) > 1:
        found = f"weights only as variants: {few(map(str, variants))}"
        raise JobError(bad_input(shown(part.folder), found, "keep one of them in this folder"))
    variant = None if None in variants else next(iter(variants))
    file = part.folder / variants[variant]
    shards = _read_index(file) if file.suffix == ".json" else {file: frozenset[str]()}
    if safe:
        return part.with_tensors(shards, _tensors(shards, file.name), variant)
    if not allow_pickle:
        found = "the weights exist only as a pickle, which can run code when it is loaded"
        remedy = "use a pipeline with .safetensors files, or trust this one with allow_pickle=1"
        raise JobError(bad_input(shown(file), found, remedy))
    for path in shards:
        read_file(path, 1)
    num_bytes = sum(path.stat().st_size for path in shards)
    parameters = num_bytes // (2 if variant in ("fp16", "bf16") else 4)
    return replace(
        part,
        weights=tuple(shards),
        num_bytes=num_bytes,
        num_parameters=parameters,
        variant=variant,
        pickled=True,
    )


def _variants(names: Sequence[str], stem: str, suffix: str) -> dict[str | None, str]:
    """Variant → its file, or the index of its shards: model.fp16.bin, model.safetensors.index.json, …"""
    pattern = re.compile(rf"{stem}(?:\.(\w+))?\.{suffix}(?:\.index(?:\.(\w+))?\.json)?")
    return {match[1] or match[2]: name for name in names if (match := pattern.fullmatch(name))}


def _tensors(shards: Mapping[Path, frozenset[str]], index: str) -> dict[str, Tensor]:
    """The tensors of all shards, each proven whole. Raises JobError with all problems."""
    problems: list[Problem] = []
    tensors: dict[str, Tensor] = {}
    for shard, names in shards.items():
        try:
            held = read_header(shard).tensors
        except JobError as error:
            problems += error.problems
            continue
        tensors |= held
        if absent := sorted(names - held.keys()):
            lack = f"lacks {few(absent, 3)}, which {index} says it holds"
            problems.append(bad_input(shown(shard), lack, _AGAIN))
    if problems:
        raise JobError(problems)
    return tensors


def _read_index(path: Path) -> dict[Path, frozenset[str]]:
    """An index of shards: file → the tensors that it must hold. Raises JobError."""
    shards: dict[str, set[str]] = {}
    try:
        for tensor, shard in read_json(path)["weight_map"].items():
            if Path(shard).name != shard or not 0 < len(shard) <= _MAX_FILE_NAME:
                raise ValueError(f"{shard[:80]!r} is not a file name")
            shards.setdefault(shard, set()).add(tensor)
            if len(shards) > _MAX_SHARDS:
                raise ValueError(f"more than {_MAX_SHARDS:,} files")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"is not an index of weight files ({error!r})"
        raise JobError(bad_input(shown(path), found, _AGAIN)) from error
    return {path.with_name(shard): frozenset(tensors) for shard, tensors in sorted(shards.items())}


class _BrokenError(Exception):
    """What is wrong with a safetensors file."""


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file that is complete. Raises JobError.

    The layout: 8 bytes with the header's length (little endian), the header (JSON), the tensors' bytes.
    Complete means: the tensors follow each other without a gap, and the file ends where the last one does.
    """
    length = int.from_bytes(read_file(path, 8), "little")
    try:
        size = path.stat().st_size
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            if size >= 8 and length <= _MAX_HEADER:
                raise _BrokenError(f"is truncated: {size:,} bytes, its header alone takes {length + 8:,}")
            raise _BrokenError(f"is not a safetensors file ({size:,} bytes without a header)")
        with path.open("rb") as file:
            file.seek(8)
            entries, metadata = _parsed(file.read(length))
        _check_extent(entries, size - 8 - length, size)
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    except _BrokenError as error:
        raise JobError(bad_input(shown(path), str(error), _AGAIN)) from error
    tensors = {name: Tensor(tuple(entry["shape"]), path, entry["dtype"]) for name, entry in entries.items()}
    return Header(tensors, metadata)


def _parsed(header: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors {dtype, shape, data_offsets} and metadata, each tensor as large as its type and shape say."""
    try:
        tensors = reading.json_of(header)
        metadata = dict(tensors.pop("__metadata__", None) or {})
        for name, tensor in tensors.items():
            if len(name) > MAX_NAME:
                raise _BrokenError(f"has a damaged header: the name of a tensor has {len(name):,} characters")
            (begin, end), shape, dtype = tensor["data_offsets"], tensor["shape"], tensor["dtype"]
            if not all(type(number) is int for number in (begin, end, *shape)) or not isinstance(dtype, str):
                raise TypeError
            if len(shape) > MAX_AXES or not all(0 <= axis < _MAX_SIZE for axis in shape):
                raise _BrokenError(f"has a damaged header: {name} has the shape {few(map(str, shape))}")
            item_size = ITEM_SIZE.get(dtype)
            if item_size is not None and end - begin != item_size * math.prod(shape):
                raise _BrokenError(f"has a damaged header: {name} does not have the bytes of its shape")
            if not max(begin, end) < _MAX_SIZE:
                raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _BrokenError("has a damaged header") from error
    return dict(tensors), metadata


def _check_extent(tensors: dict[str, Any], data_bytes: int, size: int) -> None:
    """Check that the tensors cover the rest of the file exactly."""
    position = 0
    for begin, end, name in sorted((*tensor["data_offsets"], name) for name, tensor in tensors.items()):
        if begin != position or end < begin:
            raise _BrokenError(f"has a damaged header: {name} starts at {begin:,}, expected {position:,}")
        position = end
    if position != data_bytes:
        what = "is truncated" if data_bytes < position else "is longer than its header says"
        raise _BrokenError(f"{what}: {size:,} bytes, expected {size - data_bytes + position:,}")
