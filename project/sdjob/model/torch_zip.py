"""Names, types and shapes of the tensors in a zip archive of `torch.save` (.ckpt, .pt). No code of the pickle is run.

A few bytes of a pickle can claim any memory or time: it is read in a child process, with limits of both.

Tests: tests/sdjob/model/test_single_file.py and tests/sdtrain/model/test_convert.py.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from sdjob.children.bounded import in_child
from sdjob.files import read_file, shown, unreadable
from sdjob.model.weights import MAX_AXES, MAX_NAME, Tensor
from sdjob.problems import JobError, Problem, bad_input

# Bytes of an archive's pickle and of its list of files. The tensors are outside of both, and the largest models have
# some thousands. As objects of Python they take up to ninety times as much.
_MAX_PICKLE = 8 << 20
_MAX_LIST = 16 << 20
_MAX_DEPTH = 4  # of states in states
_PATIENCE = 20.0  # seconds; the largest models take a tenth of one
MAGIC = b"PK\x03\x04"
_DTYPES = {  # of torch's storages, as safetensors names them
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


class Shell(dict[Any, Any]):
    """Replacement for an object of any other class: constructed, filled and forgotten."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def _forget(self, _: Any) -> None:
        pass

    append = extend = add = __setstate__ = _forget


def _tensor(dtype: Any, _offset: int, shape: Any, *_: Any) -> Tensor:
    if dtype not in _DTYPES.values() or not all(type(size) is int and 0 <= size < 1 << 40 for size in shape):
        raise ValueError("a tensor without a type or a shape")
    if len(shape) > MAX_AXES:
        raise ValueError(f"a tensor of {len(shape):,} axes")
    return Tensor(tuple(shape), Path(), dtype)


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


# What a state dict is made of, apart from the storages. Nothing else that a pickle names is imported or called.
_REBUILT: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
TENSOR_GLOBALS = frozenset(_REBUILT)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of the state dict, which may be the entry `state_dict` of a training state. Raises JobError."""
    return _read_in_child(path)[0]


def foreign_names(path: Path) -> list[str]:
    """What the pickle of an archive names besides PyTorch's own. Raises JobError, also where there is no archive."""
    if read_file(path, len(MAGIC)) != MAGIC:
        raise JobError(old_format(path))
    return sorted(_read_in_child(path)[1])


def old_format(path: Path) -> Problem:
    remedy = "save it again with torch 1.6 or later, preferably as .safetensors"
    return bad_input(shown(path), "is a pickle in torch's old format, or none (not a zip archive)", remedy)


def innermost(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict, which may be the entry `state_dict` of a training state. Raises ValueError."""
    for _ in range(_MAX_DEPTH):
        if "state_dict" not in state:
            return state
        state = state["state_dict"]
    raise ValueError("its entries state_dict have no end")


def _read_in_child(path: Path) -> tuple[dict[str, Tensor], set[str]]:
    return in_child(_read, path, _MAX_PICKLE, subject=shown(path), patience=_PATIENCE)


def _read(path: Path, limit: int) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors, and the foreign names. Raises JobError."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(_Bounded(file)) as archive:
            pickled = pickle_in(archive.infolist(), os.fstat(file.fileno()).st_size, limit)
            with archive.open(pickled) as stream:
                reader = _HeaderReader(stream)
                state = reader.load()
        named = innermost(state).items()
        if any(isinstance(name, str) and len(name) > MAX_NAME for name, _ in named):
            raise ValueError(f"a tensor with a name of more than {MAX_NAME:,} characters")
        tensors = {
            str(name): Tensor(tensor.shape, path, tensor.dtype)
            for name, tensor in named
            if isinstance(tensor, Tensor)
        }
    except OSError as error:
        raise JobError(unreadable(path, error)) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        found = f"is not a complete archive of torch.save ({type(error).__name__}: {error})"
        raise JobError(bad_input(shown(path), found, "download or copy this file again")) from error
    return tensors, reader.foreign


def pickle_in(entries: Sequence[zipfile.ZipInfo], size: int, limit: int) -> zipfile.ZipInfo:
    """The pickle of an archive of so many bytes. Raises ValueError.

    torch looks for it by a name without case, and takes any of several; it writes all entries as they are: they cannot
    unfold, or share their bytes.
    """
    pickles = [each for each in entries if each.filename.lower().endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} entries data.pkl")
    if pickles[0].file_size > limit:
        raise ValueError(f"{pickles[0].filename} has more than {limit:,} bytes")
    if sum(each.file_size for each in entries if each is not pickles[0]) > size:
        raise ValueError("its entries have more bytes than the file")
    return pickles[0]


class _Bounded:
    """A file of which only so much is read at once: an archive may claim a list of files of any size."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    def read(self, count: int = -1) -> bytes:
        content = self._file.read(count if 0 <= count <= _MAX_LIST else _MAX_LIST + 1)
        if len(content) > _MAX_LIST:
            raise ValueError(f"its list of files has more than {_MAX_LIST:,} bytes")
        return content


class _HeaderReader(pickle.Unpickler):
    """Reads tensors as their types and shapes."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self.foreign: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module.split(".")[0] not in ("torch", "collections"):
            self.foreign.add(f"{module}.{name}")
        return _REBUILT.get((module, name), Shell)

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, *_ = pid
        if not isinstance(dtype, str):
            raise ValueError("a tensor of an unknown type")
        return dtype
