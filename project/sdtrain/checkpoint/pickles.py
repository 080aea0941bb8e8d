"""Limits for the pickles in a checkpoint, which anyone may have written who can write to the output folder.

None of them runs code: only classes of a list are constructed. But a few bytes of a pickle can claim any memory or
time: that of an optimizer is read in a child process with limits of both before, that of shards only there
(shard_index.py), and of a shard only what torch writes is read.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
import zlib
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
from sdjob.model import torch_zip
from sdjob.problems import JobError
from sdtrain.checkpoint import shard_index

_SMALL = 1 << 14  # bytes of the pickle of one tensor, which has some hundred
_LARGEST_LIST = 1 << 20  # bytes of the list of the files of an archive, of which there are five
_REPEATED = ("GET", "BINGET", "LONG_BINGET", "DUP")
_MOST_REPEATED = 12  # a tuple of tuples, each named twice, is hashed in 2 ** so many steps


def read_metadata(path: Path) -> Metadata:
    """The metadata of shards. Raises OSError, and ValueError where it is not what torch writes of flat tensors."""
    index = shard_index.read(path)
    tensors = {
        name: TensorStorageMetadata(
            properties=TensorProperties(dtype=torch.float32),
            size=torch.Size(size),
            chunks=[
                ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in chunks
            ],
        )
        for name, (size, chunks) in index.tensors.items()
    }
    stored = {
        MetadataIndex(name, None if offset is None else torch.Size(offset), number): _StorageInfo(*where)
        for (name, offset, number), where in index.stored.items()
    }
    return Metadata(state_dict_metadata=dict(tensors), storage_data=stored)


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
