"""Weights, optimizer state and EMA of a strategy on disk, in one of two forms that every strategy reads.

Whole (plain PyTorch and DDP): model.safetensors, ema.safetensors and optimizer.pt, by rank 0.
Sharded: `shards/`, by all ranks through torch.distributed.checkpoint, and numbers.json. A shard says which
range of a flat tensor it holds, so any number of ranks, however they divide the tensors, can read it.
"""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any

import torch
import torch.distributed as dist
from pydantic import Field
from safetensors import safe_open
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from sdjob import failure_patterns, reading
from sdjob.output.checkpoint_files import EMA, MODEL, NUMBERS, OPTIMIZER, SHARDS
from sdjob.output.newest_checkpoint import unloadable
from sdjob.problems import JobError
from sdtrain.checkpoint import pickles
from sdtrain.strategies.shards import Range, Shards, whole

ADAM_STATE = ("exp_avg", "exp_avg_sq")  # as torch.optim.AdamW names them
_TIMEOUT = timedelta(hours=2)  # for a rank with a slower disk

Tables = Mapping[str, Shards]  # "master", "exp_avg", "exp_avg_sq", "ema" → shards by name


@dataclass(frozen=True)
class Numbers:
    """The optimizer state besides tensors."""

    updates: Annotated[int, Field(ge=0, lt=1 << 53)]  # of the optimizer, for Adam's bias correction
    scaler: Mapping[str, int | float]  # state of the fp16 loss scaler; empty: none


def tables(masters: Shards, adam: Tables, ema: Shards | None) -> dict[str, Shards]:
    """The tensors of a sharded checkpoint; `adam`: the optimizer state by the names of ADAM_STATE."""
    return {"master": masters, **adam, **({"ema": ema} if ema else {})}


class _Flat:
    """A shard as torch.distributed.checkpoint sees it: one chunk of a flat tensor (`_Checkpointable`)."""

    def __init__(self, shard: torch.Tensor, part: Range) -> None:
        self.shard, self._part = shard.view(-1), part

    def size(self) -> torch.Size:
        return torch.Size([self._part.shape.numel()])

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        if not self._part.length:
            return []
        return [ChunkStorageMetadata(torch.Size([self._part.offset]), torch.Size([self._part.length]))]

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                MetadataIndex(fqn, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk, TensorProperties.create_from_tensor(self.shard), self.size()
                ),
            )
            for chunk in self.__create_chunk_list__()
        ]


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        flat: _Flat = self.state_dict[index.fqn]
        return flat.shard


class _LoadPlanner(DefaultLoadPlanner):
    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Skip the default's first step, which removes everything that is not a tensor from the dictionary."""
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        flat: _Flat = self.state_dict[index.fqn]
        return flat.shard


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The default would load any pickle."""
        return pickles.read_metadata(Path(self.path) / ".metadata")

    def _slice_file(self, file: IO[bytes], info: Any) -> IO[bytes]:
        """A tensor of a file, which the default hands to torch as it is."""
        pickles.check_shard(file, info.offset, info.length)
        part: IO[bytes] = super()._slice_file(file, info)
        return part


def is_sharded(folder: Path) -> bool:
    return (folder / SHARDS).is_dir()


def save(
    folder: Path, tables: Tables, ranges: Mapping[str, Range], numbers: Numbers, group: dist.ProcessGroup
) -> None:
    """Write the sharded form, one file per rank. Collective in the group."""
    # Copying ahead would use a stream of the current device, which in a background thread is not the rank's.
    writer = FileSystemWriter(folder / SHARDS, per_thread_copy_ahead=0)
    with _failures():
        save_shards(_flat(tables, ranges), storage_writer=writer, planner=_SavePlanner(), process_group=group)
    if dist.get_rank() == 0:
        (folder / NUMBERS).write_text(json.dumps(asdict(numbers), indent=1) + "\n")


@contextmanager
def _failures() -> Iterator[None]:
    """Raise a failure of any rank on each, unwrapped: torch's wrapper is not an Exception."""
    try:
        yield
    except CheckpointException as wrapped:
        error, _ = next(iter(wrapped.failures.values()))
        raise (error if isinstance(error, Exception) else RuntimeError(str(wrapped))) from None


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Failures to read files that are what their manifest says as JobError (64): they are not what a run saves."""
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        text = "".join(traceback.format_exception_only(error)).strip()
        if failure_patterns.find(text) or (isinstance(error, OSError) and error.errno is not None):
            raise  # of the device, the memory, another rank, or the storage
        raise JobError(unloadable(folder, text.splitlines()[0])) from error


def group_of_savers() -> dist.ProcessGroup:
    """A group for saving in the background, whose collectives must not mix with those of the steps. Collective."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    return group


def writer(
    tables: Tables,
    ranges: Mapping[str, Range],
    numbers: Numbers,
    group: dist.ProcessGroup,
    *,
    background: bool,
) -> Callable[[Path], None]:
    """`save` for a folder; `background`: from copies on the host."""
    if background:
        tables = {
            table: {name: shard.detach().to("cpu", copy=True) for name, shard in shards.items()}
            for table, shards in tables.items()
        }
    return partial(save, tables=tables, ranges=ranges, numbers=numbers, group=group)


def save_whole(
    folder: Path, master: Shards, ema: Shards, optimizer: Mapping[str, Any], scaler: Mapping[str, float]
) -> None:
    """Write the whole form. By one process. `optimizer`: its state dictionary, in the order of the masters."""
    for weights, file in ((master, MODEL), (ema, EMA)):
        if weights:
            _write(folder / file, weights)
    torch.save({"optimizer": optimizer, "names": list(master), "scaler": scaler}, folder / OPTIMIZER)


def read_optimizer(folder: Path, *, mmap: bool = False) -> dict[str, Any]:
    """The `optimizer` of a checkpoint in the whole form, with `names` and `scaler`, as save_whole wrote them."""
    with loading(folder):
        pickles.check_archive(folder / OPTIMIZER)
        saved: dict[str, Any] = torch.load(
            folder / OPTIMIZER, map_location="cpu", weights_only=True, mmap=mmap
        )
        pickles.check_tensors(saved)
        reading.typed(Numbers, {"updates": 0, "scaler": saved["scaler"]})  # that it is one
    return saved


def _write(path: Path, weights: Shards) -> None:
    """As safetensors does, but one by one: a copy of all in host memory, in the order of rows, takes gigabytes."""
    header, end = {}, 0
    for name, weight in weights.items():
        start, end = end, end + 4 * weight.numel()
        header[name] = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in weights.values():
            file.write(weight.detach().float().cpu().contiguous().numpy().data)


def read_weights(folder: Path, weights: Shards, *, ema: bool) -> None:
    """Fill whole tensors with the weights of a checkpoint in either form, or with their EMA. By one process."""
    ranges = {name: whole(weight.shape) for name, weight in weights.items()}
    with loading(folder):
        if is_sharded(folder):
            _load_shards(folder, {"ema" if ema else "master": weights}, ranges)
        else:
            _fill_from_file(folder / (EMA if ema else MODEL), weights, ranges)


def _load_shards(folder: Path, tables: Tables, ranges: Mapping[str, Range]) -> None:
    """Through copies where a tensor does not lie in the order of its values, as a channels_last convolution."""
    dense = {
        table: {
            name: shard if shard.is_contiguous() else torch.empty(shard.shape)
            for name, shard in shards.items()
        }
        for table, shards in tables.items()
    }
    with _failures(), warnings.catch_warnings():
        # One process needs no group.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_shards(
            _flat(dense, ranges),
            storage_reader=_Reader(folder / SHARDS),
            planner=_LoadPlanner(flatten_state_dict=False),
            no_dist=not dist.is_initialized(),
        )
    for table, shards in tables.items():
        for name, shard in shards.items():
            if dense[table][name] is not shard:
                shard.copy_(dense[table][name])


def load(folder: Path, tables: Tables, ranges: Mapping[str, Range]) -> Numbers:
    """Fill the tables with this rank's ranges, from either form; a missing table is an error. Raises JobError (64)."""
    with loading(folder):
        return _load(folder, tables, ranges)


def _load(folder: Path, tables: Tables, ranges: Mapping[str, Range]) -> Numbers:
    if is_sharded(folder):
        _load_shards(folder, tables, ranges)
        return reading.typed(Numbers, reading.json_of(reading.content(folder / NUMBERS, reading.MESSAGE)))
    _fill_from_file(folder / MODEL, tables["master"], ranges)
    if "ema" in tables:
        _fill_from_file(folder / EMA, tables["ema"], ranges)
    saved = read_optimizer(folder, mmap=True)
    states = dict(zip(saved["names"], saved["optimizer"]["state"].values(), strict=True))
    for key in ADAM_STATE:
        for name, part in ranges.items():
            _fill(tables[key][name], part, states[name][key])
    updates = max((int(state["step"]) for state in states.values()), default=0)
    return reading.typed(Numbers, {"updates": updates, "scaler": saved["scaler"]})


def _flat(tables: Tables, ranges: Mapping[str, Range]) -> dict[str, Any]:
    return {
        f"{table}/{name}": _Flat(shards[name], part)
        for table, shards in tables.items()
        for name, part in ranges.items()
    }


def _fill_from_file(path: Path, shards: Shards, ranges: Mapping[str, Range]) -> None:
    with safe_open(path, framework="pt") as file:
        for name, part in ranges.items():
            _fill(shards[name], part, file.get_tensor(name))


def _fill(shard: torch.Tensor, part: Range, tensor: torch.Tensor) -> None:
    shard.copy_(part.of(tensor).view_as(shard))
