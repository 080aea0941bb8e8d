"""Limits for the pickles in a checkpoint, which anyone may have written who can write to the output folder.

None of them runs code: only classes of a list are constructed. But a few bytes of a pickle can claim any memory or
time: the larger ones are read in a child process with limits of both, and of a shard only what torch writes is read.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.utils._pytree import tree_leaves

from sdjob import reading
from sdjob.children.bounded import in_child
from sdjob.files import shown
from sdjob.model import torch_zip
from sdjob.problems import JobError

_MEMORY = 4 << 30  # bytes of a child process, most of it for torch itself
_PATIENCE = 60.0  # seconds
_SHARD_FILE = re.compile(r"[\w.-]+\.distcp", re.ASCII)
_LARGEST = 1 << 50  # of sizes and offsets
_SMALL, _LARGEST_LIST = (
    1 << 14,
    1 << 20,
)  # bytes of the pickle of one tensor and of its list of files: some hundred
_REPEATED = ("GET", "BINGET", "LONG_BINGET", "DUP")
_MOST_REPEATED = 12  # a tuple of tuples, each named twice, is hashed in 2 ** so many steps


class MetadataUnpickler(pickle.Unpickler):
    """Allows only the classes in the metadata of shards, so that a pickle cannot run code."""

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
        return super().find_class(module, name)


def read_metadata(path: Path) -> Metadata:
    """The metadata of shards. Raises OSError, and ValueError where it is not what torch writes of flat tensors."""
    reading.opened(path).close()  # a failing storage is another error
    try:
        return in_child(_read_metadata, path, subject=shown(path), memory=_MEMORY, patience=_PATIENCE)
    except JobError as error:
        raise ValueError(error.problems[0].found) from error


def _read_metadata(path: Path) -> Metadata:
    """Made anew of the values that are used, so that nothing else of the pickle is left."""
    found = MetadataUnpickler(io.BytesIO(reading.content(path, reading.TEXT))).load()
    tensors = {
        _text(name): TensorStorageMetadata(
            properties=TensorProperties(dtype=torch.float32),
            size=_size(tensor.size),
            chunks=[
                ChunkStorageMetadata(offsets=_size(chunk.offsets), sizes=_size(chunk.sizes))
                for chunk in tensor.chunks
            ],
        )
        for name, tensor in found.state_dict_metadata.items()
    }
    files = {
        MetadataIndex(
            fqn=_text(index.fqn),
            offset=None if index.offset is None else _size(index.offset),
            index=None if index.index is None else _number(index.index),
        ): _StorageInfo(_file(info.relative_path, path.parent), _number(info.offset), _number(info.length))
        for index, info in found.storage_data.items()
    }
    return Metadata(state_dict_metadata=dict(tensors), storage_data=files)


def _file(name: Any, folder: Path) -> str:
    if not _SHARD_FILE.fullmatch(_text(name)) or not (folder / name).is_file():
        raise ValueError(f"{shown(_text(name)[:100])} is not a file of shards")
    return _text(name)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a name that is not a text")
    return value


def _size(values: Iterable[Any]) -> torch.Size:
    return torch.Size([_number(value) for value in values])


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError("a size that is not a number")
    return value


def check_archive(path: Path) -> None:
    """Check what torch.load is going to read. Raises OSError, and ValueError where that is not bounded."""
    reading.opened(path).close()
    try:
        torch_zip.foreign_names(path)
    except JobError as error:
        raise ValueError(error.problems[0].found) from error


def check_tensors(state: Any) -> None:
    """Raise ValueError if a tensor has more values than its storage: a copy of it would take any memory."""
    for tensor in tree_leaves(state):
        if isinstance(tensor, torch.Tensor):
            size = tensor.numel() * tensor.element_size()
            if size > tensor.untyped_storage().nbytes():
                raise ValueError(f"a tensor of {size:,} bytes in a storage of fewer")


def check_shard(file: IO[bytes], start: int, length: int) -> None:
    """Check one tensor in a file of shards, which torch.load is going to read. Raises ValueError."""
    try:
        with zipfile.ZipFile(_Part(file, start, length)) as archive:
            pickled = torch_zip.pickle_in(archive.infolist(), length, _SMALL)
            operations = [each.name for each, *_ in pickletools.genops(archive.read(pickled))]
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"a shard that is no archive of torch.save ({error})") from error
    if sum(name in _REPEATED for name in operations) > _MOST_REPEATED:
        raise ValueError("a shard with a pickle that is not of a tensor")


class _Part:
    """A part of a file, of which only so much is read at once."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if self._at < 0:
            raise ValueError("a shard that ends before it begins")
        return self._at

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        count = min(left, count) if count >= 0 else left
        if count > _LARGEST_LIST:
            raise ValueError("a shard with a list of files that has no end")
        self._file.seek(self._start + self._at)
        content = self._file.read(count)
        self._at += len(content)
        return content
