"""Splits of a dataset by the names of files and folders: which one is trained on, and which are left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from sdjob.files import few
from sdjob.problems import Problem, bad_input

UNNAMED = ""  # names that say nothing about a split
TO_TRAIN = ("train", UNNAMED)
HELD_OUT = ("validation", "test", UNNAMED)
_BOTH = "+"  # between the splits of a name that says several

_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "eval", "evaluation", "dev"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_WORDS = re.compile(r"[^\W\d_]+")  # letters; everything else separates
_SHARD = re.compile(r"(.*)-\d+-of-\d+")  # the word before the number is the split, as datasets names shards


@dataclass(frozen=True)
class Choice:
    """The names that are used, and their split."""

    names: tuple[str, ...]
    split: str


def by_setting(dataset_split: str | None) -> tuple[str, ...]:
    """The splits to train on, by preference."""
    if dataset_split is None:
        return TO_TRAIN
    return (_SPLIT_OF.get(dataset_split.lower(), dataset_split.lower()),)


def split_of(name: str) -> str:
    """The split that a name says, of a path the innermost part that says one: "train", "test", "validation";
    "test+train" where it says several; "" where it says none."""
    for part in reversed(PurePath(name).parts):
        shard = _SHARD.match(part)
        said = [_SPLIT_OF[word] for word in _words(shard[1] if shard else part) if word in _SPLIT_OF]
        if said:
            return said[-1] if shard else _BOTH.join(sorted(set(said)))
    return UNNAMED


def _words(name: str) -> list[str]:
    return _WORDS.findall(name.lower())


def choose(names: Sequence[str], wanted: tuple[str, ...]) -> Choice | None:
    """The names of the first wanted split that there is; None: all are of other splits.

    A single wanted split comes from a setting: it may have any name, and where no name says a split, all are meant.
    """
    splits = {name: split_of(name) for name in names}
    for split in wanted:
        if kept := tuple(name for name in names if splits[name] == split):
            return Choice(kept, split)
    if len(wanted) > 1:
        return None
    (split,) = wanted
    kept = tuple(
        name
        for name in names
        if split in (*splits[name].split(_BOTH), *_words(name), PurePath(name).name.lower())
    )
    if kept or any(splits.values()):
        return Choice(kept, split) if kept else None
    return Choice(tuple(names), UNNAMED)


def refused(subject: str, names: Sequence[str], wanted: tuple[str, ...]) -> Problem:
    """The problem of a dataset that has other splits only."""
    splits = sorted({split for name in names for split in split_of(name).split(_BOTH)} - {UNNAMED})
    there = (
        f"the splits {', '.join(splits)}"
        if len(splits) > 1
        else f"the split {splits[0]}"
        if splits
        else "others"
    )
    what = f"no split {wanted[0]}" if len(wanted) == 1 else "other splits only"
    example = splits[-1] if splits else "NAME"
    remedy = f"add the training split, or, to train on one of these, set dataset_split={example}"
    if wanted == HELD_OUT:
        remedy = "name a folder with a validation or test split, or with images of no split"
    return bad_input(subject, f"holds {what}: {few(names)} ({there})", remedy)
