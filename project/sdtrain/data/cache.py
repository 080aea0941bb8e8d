"""A cache of entries by key, in memory or in a few files, that all ranks fill together."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sdjob import reading, writing
from sdjob.problems import Problem, bad_input
from sdjob.reading import in_threads
from sdtrain.context import RunContext
from sdtrain.reporting.progress import Progress
from sdtrain.runtime.errors import problems_of

_FIRST, _LARGEST = 32, 512  # entries of each rank between two agreements, which are the entries of a file

Entry = dict[str, torch.Tensor]  # what belongs together, by name
Made = tuple[str, Entry | Problem]  # a key with its entry, or why there is none
Make = Callable[[list[str]], Iterator[Made]]  # of these keys, in any order
Shapes = Mapping[str, tuple[int, ...]]  # of an entry's tensors, by name
ShapesOf = Callable[[str], Shapes]  # by key

_FLOATS = ("F32", "BF16", "F16")  # as safetensors names them
_MAX_HEADER = 16 << 20  # bytes, many times those of a file with the most entries


@dataclass(frozen=True)
class MemoryCache:
    """Every rank holds every entry; loader processes share the memory of their rank."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Entry:
        return self.entries[key]

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def found(self, _keys: Collection[str], _shapes_of: ShapesOf | None) -> Mapping[str, Any]:
        """What earlier runs left of these entries, for `learn`."""
        return {}

    def store(self, entries: Mapping[str, Entry]) -> Mapping[str, Any]:
        """Store entries that this rank has made; returns what every rank has to learn of them."""
        return entries

    def learn(self, known: Mapping[str, Any]) -> None:
        """Add what `found` or `store` returned on any rank."""
        self.entries.update(known)

    def is_readable(self) -> bool:
        """Whether this rank can read what it has learned."""
        return True


@dataclass(frozen=True)
class DiskCache:
    """Safetensors files with some hundred entries each, whose headers are the index.

    A file is put in place by a rename and never changed, so several jobs may share the folder. Names of tensors are
    "key/name".
    """

    folder: Path
    files: dict[str, str] = field(default_factory=dict)  # of each entry

    def __getitem__(self, key: str) -> Entry:
        file, names = _opened(self.folder / self.files[key])
        return {name: file.get_tensor(f"{key}/{name}") for name in names[key]}

    def __contains__(self, key: str) -> bool:
        return key in self.files

    def found(self, keys: Collection[str], shapes_of: ShapesOf | None = None) -> Mapping[str, Any]:
        """A file that is cut short or is not one of these has no entries, nor one that others made of other tensors."""
        wanted, names = set(keys), sorted(path.name for path in self.folder.glob("*.safetensors"))
        in_files = in_threads(self._keys_of, names)
        found = {key: name for name, of in zip(names, in_files, strict=True) for key in of & wanted}
        if shapes_of is None:
            return found
        by_file: dict[str, list[str]] = {}
        for key, name in found.items():
            by_file.setdefault(name, []).append(key)
        return {key: name for name, of in by_file.items() for key in self._fitting(name, of, shapes_of)}

    def _fitting(self, name: str, keys: Collection[str], shapes_of: ShapesOf) -> list[str]:
        """The keys whose entries in a file are of these shapes. The file is not kept open: it may be replaced yet."""
        fitting = []
        with contextlib.suppress(OSError, SafetensorError), safe_open(self.folder / name, "pt") as file:
            names = _by_key(file)
            for key in keys:
                slices = {part: file.get_slice(f"{key}/{part}") for part in names[key]}
                shapes = {part: tuple(each.get_shape()) for part, each in slices.items()}
                if shapes == shapes_of(key) and all(each.get_dtype() in _FLOATS for each in slices.values()):
                    fitting.append(key)
        return fitting

    def store(self, entries: Mapping[str, Entry]) -> Mapping[str, Any]:
        if not entries:
            return {}
        digest = hashlib.blake2b("/".join(sorted(entries)).encode(), digest_size=20)
        name = f"{digest.hexdigest()}.safetensors"
        tensors = {
            f"{key}/{part}": tensor.contiguous()
            for key, entry in entries.items()
            for part, tensor in entry.items()
        }
        writing.make_folder(self.folder, self.folder.parent)
        with writing.replacing(self.folder / name) as temporary:
            save_file(tensors, temporary)
        return dict.fromkeys(entries, name)

    def learn(self, known: Mapping[str, Any]) -> None:
        self.files.update(known)

    def is_readable(self) -> bool:
        names = sorted({*self.files.values()})
        return all(in_threads(lambda name: bool(self._keys_of(name)), names))

    def _keys_of(self, name: str) -> set[str]:
        try:
            with reading.opened(self.folder / name) as start:
                if int.from_bytes(start.read(8), "little") > _MAX_HEADER:
                    return set()
            with safe_open(self.folder / name, "pt") as file:  # compares the header with the file's size
                return {each.partition("/")[0] for each in file.keys()}  # noqa: SIM118  (not a mapping)
        except (OSError, SafetensorError):
            return set()


Cache = MemoryCache | DiskCache  # picklable and cheap to fork; reading is thread-safe
Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True)
class Cached(Generic[Item]):
    """Entries by what they are made of, such as a prompt or a view of an image."""

    keys: Mapping[Item, str]
    cache: Cache

    def __getitem__(self, item: Item) -> Entry:
        return self.cache[self.keys[item]]


@lru_cache(maxsize=256)
def _opened(path: Path) -> tuple[Any, Mapping[str, list[str]]]:
    """An open file of a cache, mapped into memory, and the names of the tensors of each entry."""
    file: Any = safe_open(path, "pt")
    return file, _by_key(file)


def _by_key(file: Any) -> Mapping[str, list[str]]:
    """The names of the tensors of each entry in an open file."""
    names: dict[str, list[str]] = {}
    for key, _, name in (each.partition("/") for each in file.keys()):  # noqa: SIM118  (not a mapping)
        names.setdefault(key, []).append(name)
    return names


def fill(
    context: RunContext,
    cache: Cache,
    title: str,
    keys: Sequence[str],
    make: Make,
    shapes_of: ShapesOf | None = None,
) -> dict[str, Problem]:
    """Add the missing entries; returns the keys that cannot have one. Collective. Raises JobError with the problems of
    all ranks, and Stopped.

    `shapes_of`: what an entry that is found has to be; None: anything. It is called on one rank. Each entry is made by
    one rank, and is the same whichever makes it. What is made before a stop is kept.
    """
    world, every = context.world, list(dict.fromkeys(keys))
    cache.learn(world.from_main(lambda: cache.found(every, shapes_of)))
    missing = [key for key in every if key not in cache]
    world.say(f"{title}: {len(every) - len(missing)} of {len(every)} cached, {len(missing)} to encode")
    failed: dict[str, Problem] = {}
    progress = Progress(f"cache {title}", len(missing), shown=world.is_main)
    made = make(missing[world.rank :: world.size])
    done, count = 0, _FIRST
    while done < len(missing):
        shown = _shown(islice(made, count), progress, done, world.size, len(missing))
        known, without, problems = _store_next(cache, context, shown)
        world.agree(problems)
        for of_rank, failed_there in world.gather((known, without)):
            cache.learn(of_rank)
            failed |= failed_there
        context.end_if_stopped()
        done, count = done + count * world.size, min(2 * count, _LARGEST)
    world.agree([] if cache.is_readable() else [_NOT_SHARED])
    return failed


def _shown(made: Iterator[Made], progress: Progress, done: int, num_ranks: int, total: int) -> Iterator[Made]:
    for number, each in enumerate(made, 1):
        yield each
        progress.show(min(done + number * num_ranks, total))


def _store_next(
    cache: Cache, context: RunContext, made: Iterator[Made]
) -> tuple[Mapping[str, Any], dict[str, Problem], list[Problem]]:
    """Make and store some entries, fewer after a request to stop: what is to be learned of them, the keys that cannot
    have one, and what keeps this rank from going on."""
    entries: dict[str, Entry] = {}
    failed: dict[str, Problem] = {}
    try:
        for key, result in made:
            if isinstance(result, Problem):
                failed[key] = result
            else:
                entries[key] = result
            if context.stop:
                break
        return cache.store(entries), failed, []
    except Exception as error:
        if problems := problems_of(error):
            return {}, failed, list(problems)
        raise


_NOT_SHARED = bad_input(
    "cache_dir",
    "holds nothing of what another process has just cached there",
    "Name a folder that all nodes share, or leave it empty: the output folder is one.",
)
