"""A cache of entries by key, in memory or on disk, that all ranks fill together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from sdjob import writing
from sdjob.problems import JobError, Problem, bad_input
from sdjob.reading import in_threads
from sdtrain.context import RunContext
from sdtrain.reporting.progress import Progress
from sdtrain.runtime.distributed import World
from sdtrain.runtime.errors import problem_of

_ROUND = 32  # entries of each rank between two agreements

Entry = dict[str, torch.Tensor]  # what belongs together, by name
Made = tuple[str, Entry | Problem]  # key, and its entry or why there is none
Make = Callable[[list[int]], Iterator[Entry | Problem]]  # positions of keys → entries, or why there is none


class Cache(Protocol):
    """Entries by key. Picklable and cheap to fork; reading is thread-safe."""

    def __getitem__(self, key: str) -> Entry: ...

    def has(self, key: str) -> bool:
        """Whether there is a complete entry."""
        ...

    def add(self, entries: Mapping[str, Entry]) -> None:
        """Add entries that this rank has made."""
        ...

    def exchange(self, entries: Mapping[str, Entry], world: World) -> None:
        """Give the entries that this rank has just added to all others. Collective."""
        ...


Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True)
class Cached(Generic[Item]):
    """Entries by what they are made of, such as a prompt or a view of an image."""

    keys: Mapping[Item, str]
    cache: Cache

    def __getitem__(self, item: Item) -> Entry:
        return self.cache[self.keys[item]]


@dataclass(frozen=True)
class MemoryCache:
    """Every rank holds every entry; loader processes share the memory of their rank."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Entry:
        return self.entries[key]

    def has(self, key: str) -> bool:
        return key in self.entries

    def add(self, entries: Mapping[str, Entry]) -> None:
        self.entries.update(entries)

    def exchange(self, entries: Mapping[str, Entry], world: World) -> None:
        for of_rank in world.gather(dict(entries)):
            self.entries.update(of_rank)


@dataclass(frozen=True)
class DiskCache:
    """A safetensors file for each entry, put in place by a rename; several runs may share the folder."""

    folder: Path

    def __getitem__(self, key: str) -> Entry:
        return load_file(self._path(key))

    def has(self, key: str) -> bool:
        try:
            with safe_open(self._path(key), "pt"):  # compares the header with the file's size
                return True
        except (OSError, SafetensorError):
            return False

    def add(self, entries: Mapping[str, Entry]) -> None:
        for key, entry in entries.items():
            path = self._path(key)
            writing.make_folder(path.parent, self.folder)
            with writing.replacing(path) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in entry.items()}, temporary)

    def exchange(self, entries: Mapping[str, Entry], world: World) -> None:
        world.barrier()  # the folder has them

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def fill(
    context: RunContext, cache: Cache, title: str, keys: Sequence[str], make: Make
) -> dict[str, Problem]:
    """Add the missing entries; returns the keys that cannot have one. Collective. Raises JobError with the problems of
    all ranks, and Stopped.

    `make` yields entries in the order of its positions. Each entry is made by one rank, independently of the others,
    so that it does not depend on the number of ranks. What is made before a stop is kept.
    """
    world = context.world
    first_positions = {key: position for position, key in reversed(list(enumerate(keys)))}
    every = sorted(first_positions.values())
    missing = _missing(cache, keys, every, world)
    world.say(
        f"{title}: {len(every) - len(missing)} of {len(every)} are cached, {len(missing)} are to be made"
    )
    mine = missing[world.rank :: world.size]
    failed: dict[str, Problem] = {}
    with Progress(title, len(missing), shown=world.is_main) as progress:
        pairs = zip([keys[position] for position in mine], make(mine), strict=False)
        made = _shown(pairs, progress, world.size, len(missing))
        for _ in range(0, math.ceil(len(missing) / world.size), _ROUND):
            entries, without, problems = _add_next(cache, islice(made, _ROUND))
            failed |= without
            world.agree(problems)
            cache.exchange(entries, world)
            context.end_if_stopped()
    failed = {key: problem for of_rank in world.gather(failed) for key, problem in of_rank.items()}
    of_another = [keys[position] for position in missing[(world.rank + 1) % world.size :: world.size]]
    world.agree(_not_shared(cache, [key for key in of_another if key not in failed]))
    return failed


def _missing(cache: Cache, keys: Sequence[str], positions: Sequence[int], world: World) -> list[int]:
    """The positions without an entry. Collective: each rank looks at a slice."""
    mine = positions[world.rank :: world.size]
    cached = in_threads(lambda position: cache.has(keys[position]), mine)
    absent = [position for position, is_cached in zip(mine, cached, strict=True) if not is_cached]
    return sorted(position for of_rank in world.gather(absent) for position in of_rank)


def _shown(made: Iterable[Made], progress: Progress, num_ranks: int, total: int) -> Iterator[Made]:
    for done, each in enumerate(made, 1):
        yield each
        progress.show(min(done * num_ranks, total))


def _add_next(
    cache: Cache, made: Iterable[Made]
) -> tuple[dict[str, Entry], dict[str, Problem], list[Problem]]:
    """Make and add some entries: these, the keys that cannot have one, and what keeps this rank from going on."""
    entries: dict[str, Entry] = {}
    failed: dict[str, Problem] = {}
    try:
        for key, result in made:
            if isinstance(result, Problem):
                failed[key] = result
            else:
                entries[key] = {name: tensor.cpu() for name, tensor in result.items()}
        cache.add(entries)
    except Exception as error:
        return entries, failed, _problems_of(error)
    return entries, failed, []


def _problems_of(error: Exception) -> list[Problem]:
    """The problems behind an exception; raises it again if it is a fault of the program."""
    if isinstance(error, JobError):
        return list(error.problems)
    if problem := problem_of(error):
        return [problem]
    raise error


def _not_shared(cache: Cache, keys: Sequence[str]) -> list[Problem]:
    """Whether this rank sees what another one has made."""
    if all(cache.has(key) for key in keys):
        return []
    remedy = "Name a folder that all nodes share, or leave it empty: the output folder is one."
    return [bad_input("cache_dir", "holds nothing of what another process has just cached there", remedy)]
