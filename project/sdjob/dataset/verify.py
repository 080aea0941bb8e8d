"""Decode the images of a dataset: a sample, or as many as the time allows."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sdjob.children.bounded import MEMORY, in_child, working_on
from sdjob.dataset import decoded_size
from sdjob.dataset.formats import DatasetInfo, tables
from sdjob.dataset.images import ImageError, Remark, image_problem, remarks_on, source_of
from sdjob.dataset.text_files import LONGEST_CAPTION
from sdjob.files import few, shown
from sdjob.formatting import counted
from sdjob.problems import Problem
from sdjob.reading import in_threads

Result = TypeVar("Result")
_AT_ONCE = 64  # images; of a table their bytes are in memory
_SMALL = 1 << 20  # bytes of an image: the parts that a file may list take hundreds of times as much


@dataclass(frozen=True)
class Examined:
    """What decoding some images has shown."""

    count: int
    problems: Mapping[int, Problem]  # of images that cannot be decoded, by index
    remarks: Mapping[Remark, Sequence[str]]  # on the others: their names

    @property
    def bad(self) -> list[Problem]:
        """The problems by name."""
        return sorted(self.problems.values())

    def lines(self) -> list[tuple[str, bool]]:
        """The remarks as text, and whether each is a warning."""
        return [
            (
                f"{len(names):,} of {counted(self.count, 'image')} looked at {remark.text}: {few(sorted(names), 3)}",
                remark.is_warning,
            )
            for remark, names in sorted(self.remarks.items())
        ]


def joined(parts: Sequence[Examined]) -> Examined:
    """What several have shown, of different images."""
    remarks: dict[Remark, list[str]] = defaultdict(list)
    problems: dict[int, Problem] = {}
    for part in parts:
        problems |= part.problems
        for remark, names in part.remarks.items():
            remarks[remark] += names
    return Examined(sum(part.count for part in parts), problems, remarks)


def examine(
    indices: Sequence[int], name: Callable[[int], str], source: Callable[[int], Path | bytes]
) -> Examined:
    """Decode images in threads (Pillow frees the GIL). `source` may raise ImageError."""

    def found(index: int) -> Problem | list[Remark]:
        try:
            return remarks_on(source(index))
        except ImageError as error:
            return image_problem(name(index), error)

    problems: dict[int, Problem] = {}
    remarks: dict[Remark, list[str]] = defaultdict(list)
    results = in_threads(found, indices, threads=min(8, os.cpu_count() or 1))
    for index, result in zip(indices, results, strict=True):
        if isinstance(result, Problem):
            problems[index] = result
            continue
        for remark in result:
            remarks[remark].append(name(index))
    return Examined(len(indices), problems, remarks)


def first_captions(info: DatasetInfo, limit: int) -> list[str]:
    """The first captions, one character longer than LONGEST_CAPTION at most. Raises JobError."""
    return _bounded(_first_captions, info, limit, 0, ())


def verify_sample(info: DatasetInfo, limit: int) -> Examined:
    """Up to `limit` images, evenly spread. Raises JobError where a table cannot be read."""
    sample = [] if info.row_counts else [info.files[index] for index in spread(info.num_examples, limit)]
    return _bounded(_verify_sample, info, limit, decoded_size.MEMORY, sample)


def verify_all(info: DatasetInfo, until: float) -> Examined:
    """All images, or those that were tried by then (time.monotonic()). Raises JobError where a table cannot be read."""
    return _bounded(_verify_all, info, until, decoded_size.MEMORY, info.files)


def _bounded(
    read: Callable[[DatasetInfo, Any], Result],
    info: DatasetInfo,
    limit: float,
    memory: int,
    images: Sequence[Path],
) -> Result:
    """What `read` returns; a table is read in another process, which damage in it may end, and so are large images.

    `memory`: bytes that it takes besides those for the table. `images`: the files that are decoded.
    """
    memory += tables.memory_for(info) if info.row_counts else MEMORY
    if not info.row_counts and len(images) <= _AT_ONCE and all(map(_is_small, images)):
        return read(info, limit)  # another process starts in a third of a second
    return in_child(read, info, limit, subject=shown(info.path), memory=memory)


def _is_small(image: Path) -> bool:
    try:
        return image.stat().st_size <= _SMALL
    except OSError:  # named where it is decoded
        return True


def _first_captions(info: DatasetInfo, limit: int) -> list[str]:
    return [text[: LONGEST_CAPTION + 1] for text in islice(info.format.captions(info), limit)]


def _verify_sample(info: DatasetInfo, limit: int) -> Examined:
    return _examined(info, info.format.sample(info, spread(info.num_examples, limit)))


def _verify_all(info: DatasetInfo, until: float) -> Examined:
    parts: list[Examined] = []
    tried = 0
    stored = info.format.images(info)
    while time.monotonic() < until and (batch := list(islice(stored, _AT_ONCE))):
        parts.append(_examined(info, dict(enumerate(batch, tried))))
        tried += len(batch)
        working_on(shown(info.path))
    return joined(parts)


def _examined(info: DatasetInfo, values: Mapping[int, Any]) -> Examined:
    name = partial(info.format.name_of, info)

    def source(index: int) -> Path | bytes:
        working_on(name(index))
        return source_of(values[index], info.path)

    return examine(list(values), name, source)


def spread(count: int, limit: int) -> list[int]:
    """Up to `limit` of the numbers 0 … count - 1, evenly spread, first and last among them."""
    if count <= limit:
        return list(range(count))
    return sorted({round(i * (count - 1) / max(1, limit - 1)) for i in range(limit)})
