"""Weight files, judged by their headers: no tensor is read, and torch is not needed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .folders import LFS_POINTER, lfs_problem, unreadable
from .problem import JobError, bad_input

_MAX_HEADER = 100_000_000  # the format's own limit
_ITEM_SIZE = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_AGAIN = "download or copy this file again"


@dataclass(frozen=True)
class Weights:
    """What the header of a safetensors file says: its tensors' names, bytes, and floating-point numbers."""

    names: frozenset[str]
    num_bytes: int
    num_parameters: int


class _BrokenError(ValueError):
    """What is wrong with a header."""


def read_header(path: Path) -> Weights:
    """Proves that a safetensors file is whole: header sound, tensors contiguous, size exact. Raises JobError.

    The layout: 8 bytes with the header's length (little endian), the header (JSON), the tensors' bytes.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(max(8, len(LFS_POINTER)))
            if start == LFS_POINTER:
                raise JobError(lfs_problem(path))
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > min(_MAX_HEADER, size - 8):
                raise _BrokenError(_no_header(size, length))
            file.seek(8)
            tensors = _tensors(file.read(length))
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    except _BrokenError as error:
        raise JobError(bad_input(str(path), str(error), _AGAIN)) from error

    data_bytes = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    expected = 8 + length + data_bytes
    if size != expected:
        what = "is truncated" if size < expected else "is longer than its header says"
        raise JobError(bad_input(str(path), f"{what}: {size:,} bytes, expected {expected:,}", _AGAIN))
    return Weights(frozenset(tensors), data_bytes, _count(tensors))


def _no_header(size: int, length: int) -> str:
    if size == 0:
        return "is empty (0 bytes)"
    if 0 < length <= _MAX_HEADER and size >= 8:
        return f"is truncated: {size:,} bytes, its header alone takes {length + 8:,}"
    return f"is no safetensors file ({size:,} bytes without a header)"


def _tensors(header: bytes) -> dict[str, Any]:
    """Name → {dtype, shape, data_offsets}, contiguous from 0, each as large as its type and shape say."""
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        position = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: tuple(item[1]["data_offsets"])):
            begin, end = tensor["data_offsets"]
            item_size = _ITEM_SIZE.get(tensor["dtype"])
            if begin != position or end < begin:
                raise _BrokenError(f"has a damaged header: {name} lies at {begin:,}, expected {position:,}")
            if item_size is not None and end - begin != item_size * math.prod(tensor["shape"]):
                raise _BrokenError(f"has a damaged header: {name} does not have the bytes of its shape")
            position = end
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, _BrokenError):
            raise
        raise _BrokenError("has a damaged header") from error
    return dict(tensors)


def _count(tensors: dict[str, Any]) -> int:
    """Floating-point numbers; index buffers such as position_ids are not parameters."""
    floating = (t for t in tensors.values() if "F" in t["dtype"])
    return sum(math.prod(tensor["shape"]) for tensor in floating)


def read_index(path: Path) -> dict[str, frozenset[str]]:
    """An index of shards: file name → the tensors that it must hold. Raises JobError."""
    try:
        shards: dict[str, set[str]] = {}
        for tensor, shard in json.loads(path.read_bytes())["weight_map"].items():
            if Path(shard).name != shard:
                raise ValueError(f"{shard!r} is not a file name")
            shards.setdefault(shard, set()).add(tensor)
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(
            bad_input(str(path), f"is not an index of weight files ({error!r})", _AGAIN)
        ) from error
    return {shard: frozenset(tensors) for shard, tensors in sorted(shards.items())}
