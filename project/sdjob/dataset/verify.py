"""Every image of a dataset, decoded once, as far as the time allows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sdjob.dataset.detect import DatasetInfo, table_of
from sdjob.dataset.formats.parquet import column_values
from sdjob.dataset.images import decode, source_of, undecodable
from sdjob.files import shown
from sdjob.problems import Problem

_AT_ONCE = 64  # images; of a table their bytes are in memory


def verify_all(info: DatasetInfo, until: float) -> tuple[list[Problem], int]:
    """Each image that cannot be decoded, and how many were looked at by then (time.monotonic()).

    Raises JobError where a table cannot be read.
    """
    bad: list[Problem] = []
    looked = 0
    table = None if info.format in ("folder", "metadata") else table_of(info)
    images: Iterator[Any] = column_values(table, info.image_column) if table else iter(info.files)
    while time.monotonic() < until and (batch := list(islice(images, _AT_ONCE))):
        first = looked

        def name(index: int, first: int = first) -> str:
            return table.row_name(first + index) if table else shown(info.files[first + index])

        def source(index: int, batch: list[Any] = batch) -> Path | bytes:
            return source_of(batch[index], info.path) if table else batch[index]

        bad += undecodable(range(len(batch)), name, lambda index: decode(source(index))).values()
        looked += len(batch)
    return sorted(bad), looked
