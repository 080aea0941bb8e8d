"""What a description of shards says (`.metadata` of torch.distributed.checkpoint), read as plain values without torch.

It is a pickle, of which a few bytes can claim any memory or time: it is read in a child process with limits of both.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjob import reading
from sdjob.children.bounded import in_child
from sdjob.files import shown
from sdjob.problems import JobError

_MEMORY = 4 << 30  # bytes; some kilobytes for each shard
_PATIENCE = 60.0  # seconds
_FILE = re.compile(r"[\w.-]+\.distcp", re.ASCII)
_LARGEST = 1 << 50  # of sizes and offsets

Size = tuple[int, ...]


@dataclass(frozen=True)
class ShardIndex:
    """The tensors, each with its size and the offsets and sizes of its shards, and where each shard is stored."""

    tensors: Mapping[str, tuple[Size, list[tuple[Size, Size]]]]
    # By name, offset and number of the shard: the file alongside, offset and length in it.
    stored: Mapping[tuple[str, Size | None, int | None], tuple[str, int, int]]


def read(path: Path) -> ShardIndex:
    """Raises OSError, and ValueError where it is not what torch writes of tensors."""
    reading.opened(path).close()  # a failing storage is another error
    try:
        return in_child(read_here, path, subject=shown(path), memory=_MEMORY, patience=_PATIENCE)
    except JobError as error:
        raise ValueError(error.problems[0].found) from error


def read_here(path: Path) -> ShardIndex:
    """The same without limits."""
    found = IndexUnpickler(io.BytesIO(reading.content(path, reading.TEXT))).load()
    tensors = {
        _text(name): (
            _size(tensor.size),
            [(_size(chunk.offsets), _size(chunk.sizes)) for chunk in tensor.chunks],
        )
        for name, tensor in found.state_dict_metadata.items()
    }
    stored = {
        (
            _text(index.fqn),
            None if index.offset is None else _size(index.offset),
            None if index.index is None else _number(index.index),
        ): (_file(info.relative_path, path.parent), _number(info.offset), _number(info.length))
        for index, info in found.storage_data.items()
    }
    return ShardIndex(tensors, stored)


class _Record:
    """Replacement for an object of torch: its attributes, and a hash of those that make a key."""

    fqn = offset = index = None

    def __init__(self, *_: Any) -> None:
        """Arguments, as of the classes of torch that have some, are not needed."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update(state)

    def __hash__(self) -> int:
        return hash((self.fqn, self.offset, self.index))


class IndexUnpickler(pickle.Unpickler):
    """Constructs records instead of the classes in the metadata of shards, and nothing else: it runs no code."""

    _NAMES: Mapping[str, Collection[str]] = {
        "pathlib": ("PosixPath",),
        "torch": ("Size", "float32"),
        "torch.serialization": ("_get_layout",),
        "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
        "torch.distributed.checkpoint.metadata": (
            *("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
            *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
        ),
    }

    def find_class(self, module: str, name: str) -> Any:
        if name not in self._NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a checkpoint")
        return tuple if name == "Size" else _Record


def _file(name: Any, folder: Path) -> str:
    if not _FILE.fullmatch(_text(name)) or not (folder / name).is_file():
        raise ValueError(f"{shown(_text(name)[:100])} is not a file of shards")
    return _text(name)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a name that is not a text")
    return value


def _size(values: Iterable[Any]) -> Size:
    return tuple(_number(value) for value in values)


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError("a size that is not a number")
    return value
