"""Decode the images of a dataset: a sample, or as many as the time allows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any

from sdjob.dataset.formats import DatasetInfo
from sdjob.dataset.images import decode, source_of, undecodable
from sdjob.problems import JobError, Problem

_AT_ONCE = 64  # images; of a table their bytes are in memory


def verify_sample(info: DatasetInfo, limit: int) -> list[Problem]:
    """Up to `limit` images, evenly spread: the problems of those that cannot be decoded."""
    try:
        return _problems(info, info.format.sample(info, spread(info.num_examples, limit)))
    except JobError as error:
        return list(error.problems)


def verify_all(info: DatasetInfo, until: float) -> tuple[list[Problem], int]:
    """The problems of images that cannot be decoded, and how many were tried by then (time.monotonic()).

    Raises JobError where a table cannot be read.
    """
    problems: list[Problem] = []
    tried = 0
    images = info.format.images(info)
    while time.monotonic() < until and (batch := list(islice(images, _AT_ONCE))):
        problems += _problems(info, dict(enumerate(batch, tried)))
        tried += len(batch)
    return sorted(problems), tried


def _problems(info: DatasetInfo, values: Mapping[int, Any]) -> list[Problem]:
    bad = undecodable(
        list(values),
        partial(info.format.name_of, info),
        lambda index: decode(source_of(values[index], info.path)),
    )
    return sorted(bad.values())


def spread(count: int, limit: int) -> list[int]:
    """Up to `limit` of the numbers 0 … count - 1, evenly spread, first and last among them."""
    if count <= limit:
        return list(range(count))
    return sorted({round(i * (count - 1) / max(1, limit - 1)) for i in range(limit)})
