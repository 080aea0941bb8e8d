"""One file with all tensors of a model: where the bytes of each lie. Nothing is loaded, and no code is run.

safetensors files, and the zip archives of `torch.save` (.ckpt, .pt), whose pickle is read with empty shells in the
place of everything that it names.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sdjob.files import read_file, shown, unreadable
from sdjob.model.weights import ITEM_SIZE, whole_header
from sdjob.problems import JobError, bad_input

_ZIP = b"PK\x03\x04"
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04")  # of torch before 1.6, or of another program
_AGAIN = "download or copy this file again"
_LOCAL_HEADER = 30  # bytes of a zip entry before its name
# The classes of torch's storages, and what safetensors calls their numbers.
_STORAGES = {
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its type as safetensors names it, and its bytes, which lie in a row."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int  # bytes

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Archive:
    """The tensors of a file, and what its header says besides them."""

    path: Path
    tensors: Mapping[str, Stored] = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)


def open_archive(path: Path, *, allow_pickle: bool) -> Archive:
    """The tensors of a file, proven whole. Raises JobError."""
    start = read_file(path, 4)
    if start != _ZIP and not start.startswith(_PICKLES):
        header = whole_header(path)
        tensors = {
            name: Stored(
                about["dtype"],
                tuple(about["shape"]),
                header.begin + about["data_offsets"][0],
                about["data_offsets"][1] - about["data_offsets"][0],
            )
            for name, about in header.tensors.items()
        }
        return Archive(path, tensors, header.metadata)
    if not allow_pickle:
        found = "is a pickle, which can run code when it is loaded"
        remedy = "use the .safetensors file of this model, or trust this one with allow_pickle=1"
        raise JobError(bad_input(shown(path), found, remedy))
    if start != _ZIP:
        remedy = "save it again with a torch of 1.6 or later, better as .safetensors"
        raise JobError(
            bad_input(shown(path), "is a pickle of an old kind, which is not a zip archive", remedy)
        )
    return Archive(path, _of_zip(path))


def looks_like_archive(path: Path) -> bool:
    """By the first bytes; a mounted file may have any name. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(9)
    return start.startswith((_ZIP, *_PICKLES)) or start[8:] == b"{"


# --- archives of torch.save --------------------------------------------------------------------------


def _of_zip(path: Path) -> dict[str, Stored]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            pickled = next(name for name in entries if name.endswith("/data.pkl"))
            root = pickled.removesuffix("data.pkl")
            if archive.NameToInfo.get(f"{root}byteorder") and archive.read(f"{root}byteorder") != b"little":
                raise ValueError("its numbers are big-endian")
            with archive.open(pickled) as stream:
                state = _Reader(stream).load()
            begins = {
                name.removeprefix(f"{root}data/"): (_begin(file, info), info.file_size)
                for name, info in entries.items()
                if name.startswith(f"{root}data/") and info.compress_type == zipfile.ZIP_STORED
            }
        return _stored(state, begins)
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    except Exception as error:  # whatever a damaged pickle makes of itself
        found = f"is no whole archive of torch ({type(error).__name__}: {error})"
        raise JobError(bad_input(shown(path), found, _AGAIN)) from error


def _begin(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where the content of an entry begins: behind a header of its own, whose extra field may be any length."""
    file.seek(info.header_offset + 26)
    lengths = file.read(4)
    return (
        info.header_offset
        + _LOCAL_HEADER
        + int.from_bytes(lengths[:2], "little")
        + int.from_bytes(lengths[2:], "little")
    )


def _stored(state: Any, begins: Mapping[str, tuple[int, int]]) -> dict[str, Stored]:
    """The tensors of the state dict, which may lie in `state_dict` beside the state of a training."""
    found = {}
    values = state.get("state_dict", state)
    for name, tensor in values.items():
        if not isinstance(tensor, _Tensor) or not isinstance(name, str):
            continue
        if not _in_a_row(tensor.shape, tensor.strides):
            raise ValueError(f"{name} does not lie in a row")
        begin, available = begins[tensor.storage.key]
        width = ITEM_SIZE[tensor.storage.dtype]
        offset, size = tensor.offset * width, math.prod(tensor.shape) * width
        if offset + size > available:
            raise ValueError(f"{name} is longer than its storage")
        found[name] = Stored(tensor.storage.dtype, tensor.shape, begin + offset, size)
    return found


def _in_a_row(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the numbers lie one after the other; the stride of an axis of length 1 means nothing."""
    return all(
        stride == math.prod(shape[axis + 1 :])
        for axis, (length, stride) in enumerate(zip(shape, strides, strict=True))
        if length > 1
    )


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Shell(dict[Any, Any]):
    """Stands for an object of any class: it is made, filled and forgotten."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


def _tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


class _Reader(pickle.Unpickler):
    """Reads names and shapes; nothing that the pickle names is imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return _KNOWN.get((module, name), _Shell)

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, str):
            raise ValueError(f"a tensor of a kind that is not known ({dtype})")
        return _Storage(dtype, str(key))
