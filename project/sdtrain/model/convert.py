"""A model in one file as the folder that diffusers reads: made once, byte by byte, without loading a tensor."""

from __future__ import annotations

import json
import os
import shutil
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from sdjob.files import sync_tree
from sdjob.model import vocabulary
from sdjob.model.pipeline import PipelineFolder, find_pipeline
from sdjob.model.single_file import Piece, SingleFile, converted_folder
from sdjob.model.weights import ITEM_SIZE
from sdjob.problems import JobError, Problem, bad_output
from sdjob.settings.run_spec import RunSpec
from sdtrain.reporting.progress import Progress, say
from sdtrain.runtime.distributed import World
from sdtrain.runtime.stop import Stopped, StopRequest

_BLOCK = 1 << 24
_ABANDONED = 600.0  # seconds without a write
_WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
_ITEMS = {1: "B", 2: "H", 4: "I", 8: "Q"}  # of the array module, by bytes


def as_folder(model: PipelineFolder, spec: RunSpec, world: World, stop: StopRequest) -> PipelineFolder:
    """The same model as a folder. Collective. Raises JobError (73 where it cannot be written), Stopped.

    The first rank makes it, and then the first rank of each node that does not see it there.
    """
    if model.single is None:
        return model
    single, folder = model.single, converted_folder(model.single, spec.cache_dir, Path(spec.output_dir))
    found: PipelineFolder | None = None
    for mine in (world.is_main, world.local_rank == 0):
        problems: list[Problem] = []
        if mine and not stop:
            try:
                found = found or _whole(folder) or _made(single, folder, world, stop)
            except JobError as error:
                problems += error.problems
        world.agree(problems)
        if world.any(bool(stop)):
            raise Stopped(0)
    return found or find_pipeline(folder, None, allow_pickle=False)


def _whole(folder: Path) -> PipelineFolder | None:
    """What an earlier start of the job has made; None: nothing, or not all of it is there any more."""
    try:
        return find_pipeline(folder, None, allow_pickle=False)
    except JobError:
        return None


def _made(single: SingleFile, folder: Path, world: World, stop: StopRequest) -> PipelineFolder | None:
    """Writes the folder, whole or not at all; None: asked to stop meanwhile. Raises JobError (73)."""
    temporary = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}.tmp")
    say(f"converting {single.path.name} ({single.blueprint.kind}) once, to {folder}")
    try:
        _clear(folder)
        temporary.mkdir(parents=True)
        if not _write(single, temporary, shown=world.is_main, stopped=lambda: bool(stop)):
            return None
        sync_tree(temporary)
        if not _whole(folder):  # another job with the same cache, or a node whose folder was not seen at once
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    except OSError as error:
        if found := _whole(folder):  # another one was quicker
            return found
        remedy = "Free some space there, or set cache_dir to a folder on a larger volume."
        problem = bad_output(str(folder), f"the converted model cannot be written ({error})", remedy)
        raise JobError(problem) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return find_pipeline(folder, None, allow_pickle=False)


def _clear(folder: Path) -> None:
    """Takes away what attempts have left that were killed: nothing has been written there for a while."""
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):
        newest = max(path.stat().st_mtime for path in (left, *left.rglob("*")))
        if time.time() - newest > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)


def _write(single: SingleFile, folder: Path, *, shown: bool, stopped: Callable[[], bool]) -> bool:
    """All files of the folder; false: stopped before the end."""
    write_texts(single, folder)
    done, total = 0, sum(piece.stored.size for part in single.weights.values() for piece in part.values())
    with (
        single.path.open("rb") as source,
        _progress(total, shown) as progress,
    ):
        for part, pieces in single.weights.items():
            with (folder / part / _WEIGHTS[part]).open("wb") as target:
                for size in write_weights(source, target, _in_files(part, pieces)):
                    done += size
                    progress.show(_megabytes(done))
                    if stopped():
                        return False
    return True


def write_texts(single: SingleFile, folder: Path) -> None:
    """Everything but the weights: configurations and tokenizers."""
    for name, content in (*single.blueprint.files.items(), *_vocabularies(single)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def _progress(total: int, shown: bool) -> Progress:
    return Progress("converting (MB)", _megabytes(total), shown=shown)


def _megabytes(size: int) -> int:
    """Rounded up, so that something is done in any case."""
    return -(-size // 10**6)


def _vocabularies(single: SingleFile) -> Iterator[tuple[str, str]]:
    for tokenizer in single.blueprint.vocabularies:
        for name, content in vocabulary.files().items():
            yield f"{tokenizer}/{name}", content


def _in_files(part: str, pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """By the names that every version of transformers reads."""
    if not part.startswith("text_encoder"):
        return dict(pieces)
    return {
        name if name == "text_projection.weight" else f"text_model.{name}": piece
        for name, piece in pieces.items()
    }


def write_weights(source: BinaryIO, target: BinaryIO, pieces: Mapping[str, Piece]) -> Iterator[int]:
    """A safetensors file with these tensors of another file; gives the number of bytes after each block.

    Large items first, so that each lies at a multiple of its size, as the format wishes.
    """
    names = sorted(pieces, key=lambda name: (-ITEM_SIZE.get(pieces[name].stored.dtype, 1), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        stored = pieces[name].stored
        offsets = [position, position + stored.size]
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": offsets}
        position += stored.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        piece = pieces[name]
        for block in (_transposed(source, piece),) if piece.transposed else _blocks(source, piece):
            target.write(block)
            yield len(block)


def _blocks(source: BinaryIO, piece: Piece) -> Iterator[bytes]:
    source.seek(piece.stored.begin)
    left = piece.stored.size
    while left:
        block = source.read(min(left, _BLOCK))
        if not block:
            raise OSError(f"{source.name} has become shorter")
        left -= len(block)
        yield block


def _transposed(source: BinaryIO, piece: Piece) -> bytes:
    """A matrix by its columns."""
    items = _ITEMS[piece.stored.size // piece.stored.count]
    rows = array(items, b"".join(_blocks(source, piece)))
    height, width = piece.stored.shape  # of the result
    return b"".join(rows[row::height].tobytes() for row in range(height)) if width else b""
