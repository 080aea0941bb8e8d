"""A cache of entries by key, in memory or on disk, which all ranks fill together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from sdjob import files
from sdjob.problems import JobError, Problem, bad_input
from sdjob.threads import in_threads
from sdtrain.reporting.progress import Progress, say
from sdtrain.runtime.distributed import World
from sdtrain.runtime.errors import problem_of
from sdtrain.runtime.stop import Stopped, StopRequest

_ROUND = 32  # entries of each rank between two agreements

Entry = dict[str, torch.Tensor]  # what belongs together, by name


class Cache(Protocol):
    """Entries by key. Picklable and cheap to fork; reading is thread-safe."""

    def __getitem__(self, key: str) -> Entry: ...

    def has(self, key: str) -> bool:
        """Whether the entry is there and whole."""
        ...

    def add(self, entries: Mapping[str, Entry]) -> None:
        """Keeps what this rank has made."""
        ...

    def exchange(self, entries: Mapping[str, Entry], world: World) -> None:
        """Gives what this rank has just added to all others. Collective."""
        ...


@dataclass(frozen=True)
class MemoryCache:
    """Every rank holds every entry; loader processes share it with their rank."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Entry:
        return self.entries[key]

    def has(self, key: str) -> bool:
        return key in self.entries

    def add(self, entries: Mapping[str, Entry]) -> None:
        self.entries.update(entries)

    def exchange(self, entries: Mapping[str, Entry], world: World) -> None:
        for share in world.gather(dict(entries)):
            self.entries.update(share)


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
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(path) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in entry.items()}, temporary)

    def exchange(self, entries: Mapping[str, Entry], world: World) -> None:
        world.barrier()  # they are in the folder

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def fill(
    cache: Cache,
    title: str,
    keys: Sequence[str],
    make: Callable[[list[int]], Iterator[Entry | Problem]],
    world: World,
    stop: StopRequest,
    step: int,
) -> dict[str, Problem]:
    """Has an entry for every key, but for those that are returned. Collective. Raises JobError with the problems of
    all ranks, and Stopped.

    `make` yields the entries for some places of `keys`, in their order, or why there can be none; each place is made
    by one rank, on its own, so that an entry does not depend on who made it. What is made before a stop at `step` is
    kept.
    """
    first_places = {key: place for place, key in reversed(list(enumerate(keys)))}
    every = sorted(first_places.values())
    asked = every[world.rank :: world.size]
    there = in_threads(lambda place: cache.has(keys[place]), asked)
    absent = [place for place, is_there in zip(asked, there, strict=True) if not is_there]
    missing = sorted(place for share in world.gather(absent) for place in share)
    if world.is_main:
        say(f"{title}: {len(every) - len(missing)} of {len(every)} are cached, {len(missing)} are to be made")
    mine = missing[world.rank :: world.size]
    made = make(mine)
    failed: dict[str, Problem] = {}
    with Progress(title, len(missing), shown=world.is_main) as progress:
        for start in range(0, -(-len(missing) // world.size), _ROUND):
            entries: dict[str, Entry] = {}
            problems: list[Problem] = []
            try:
                for done, place in enumerate(mine[start : start + _ROUND], start + 1):
                    one = next(made)
                    if isinstance(one, Problem):
                        failed[keys[place]] = one
                    else:
                        entries[keys[place]] = {name: tensor.cpu() for name, tensor in one.items()}
                    progress.show(min(done * world.size, len(missing)))
                cache.add(entries)
            except Exception as error:
                problems = _problems_of(error)
            world.agree(problems)
            cache.exchange(entries, world)
            if world.any(bool(stop)):
                raise Stopped(step)
    failed = {key: problem for share in world.gather(failed) for key, problem in share.items()}
    of_another = [keys[place] for place in missing[(world.rank + 1) % world.size :: world.size]]
    world.agree(_unshared(cache, [key for key in of_another if key not in failed]))
    return failed


def _problems_of(error: Exception) -> list[Problem]:
    """The problems behind an exception; raises it again if it is a fault of the program."""
    if isinstance(error, JobError):
        return list(error.problems)
    if problem := problem_of(error):
        return [problem]
    raise error


def _unshared(cache: Cache, keys: Sequence[str]) -> list[Problem]:
    """Whether this rank sees what another one has made."""
    if all(cache.has(key) for key in keys):
        return []
    remedy = "Name a folder that all nodes share, or leave it empty: the output folder is one."
    return [bad_input("cache_dir", "holds nothing of what another process has just cached there", remedy)]
