"""From the notes of the processes to figures, and from the figures of many runs to a table in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class Case:
    """What all trainers are given to do."""

    recipe: str
    resolution: int
    batch: int  # pictures per process
    processes: int
    images: int  # of a step, of all processes


@dataclass(frozen=True)
class Run:
    """One run; the figures are of a run that ended well."""

    code: int
    began: float  # seconds since the epoch
    seconds: float  # of the whole command
    first_step: float = math.nan  # seconds from the start of the command to the first update
    ending: float = math.nan  # seconds from the last update to the end of the command
    peak_bytes: float = math.nan  # resident, of all processes
    steps: tuple[float, ...] = ()  # seconds of each step
    cpus: tuple[float, ...] = ()  # seconds of processor time of each step, of all processes


def measured(ranks: Sequence[Mapping[str, Any]], began: float, ended: float, skip: int) -> Run:
    """From the notes of all ranks; the times are those of the first. A step ends where its update does."""
    walls = ranks[0]["walls"]
    cpus = zip(*(_differences(rank["cpus"])[skip - 1 :] for rank in ranks), strict=True)
    return Run(
        code=0,
        began=began,
        seconds=ended - began,
        first_step=walls[0] - began,
        ending=ended - walls[-1],
        peak_bytes=sum(rank["peak_bytes"] for rank in ranks),
        steps=tuple(_differences(walls)[skip - 1 :]),
        cpus=tuple(map(sum, cpus)),
    )


def _differences(times: Sequence[float]) -> list[float]:
    return [round(after - before, 6) for before, after in pairwise(times)]


@dataclass(frozen=True)
class Figures:
    """Of all rounds of one trainer at one case."""

    first_step: float  # seconds, median of the rounds
    step: float  # seconds, median of all steps of all rounds
    cpu: float  # seconds of processor time a step: lower quartile, which other work on the machine disturbs least
    peak_bytes: float  # median of the rounds
    ending: float  # seconds, median of the rounds
    codes: tuple[int, ...]


def figures(runs: Sequence[Run]) -> Figures:
    good = [run for run in runs if run.code == 0]
    return Figures(
        first_step=_quantile([run.first_step for run in good], 0.5),
        step=_quantile([step for run in good for step in run.steps], 0.5),
        cpu=_quantile([cpu for run in good for cpu in run.cpus], 0.25),
        peak_bytes=_quantile([run.peak_bytes for run in good], 0.5),
        ending=_quantile([run.ending for run in good], 0.5),
        codes=tuple(sorted({run.code for run in runs})),
    )


def _quantile(values: Sequence[float], part: float) -> float:
    """Between the two nearest values, as the median is; nan: there is none."""
    if not values:
        return math.nan
    place = part * (len(values) - 1)
    below, above = sorted(values)[math.floor(place)], sorted(values)[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


Runs = Mapping[tuple[Case, str], Sequence[Run]]
COLUMNS = (
    "recipe",
    "px",
    "batch",
    "processes",
    "trainer",
    "first step (s)",
    "steps/s",
    "images/s",
    "CPU per step (ms)",
    "peak RSS (MiB)",
    "end (s)",
    "exit",
    "steps/s, × peer",
    "CPU, × peer",
)


def rendered(about: Mapping[str, Any], runs: Runs, peer: str) -> str:
    """Facts, means over all cases, and a row for each case and trainer."""
    head = "\n".join(f"- {name}: {value}" for name, value in about.items())
    found = {key: figures(of) for key, of in runs.items()}
    rows = [_row(case, way, found[case, way], found[case, peer]) for case, way in sorted(found, key=_place)]
    parts = ["# Beside the example scripts of diffusers", head, _means(found, peer), _table(COLUMNS, rows)]
    return "\n\n".join(parts) + "\n"


def _place(key: tuple[Case, str]) -> tuple[Any, ...]:
    case, way = key
    return case.processes, case.recipe, case.resolution, case.batch, way


def _row(case: Case, way: str, found: Figures, peer: Figures) -> list[str]:
    return [
        case.recipe,
        str(case.resolution),
        str(case.batch),
        str(case.processes),
        way,
        f"{found.first_step:.1f}",
        f"{1 / found.step:.1f}",
        f"{case.images / found.step:.1f}",
        f"{found.cpu * 1e3:.0f}",
        f"{found.peak_bytes / MIB:.0f}",
        f"{found.ending:.1f}",
        " ".join(map(str, found.codes)),
        f"{peer.step / found.step:.2f}",
        f"{found.cpu / peer.cpu:.2f}",
    ]


def _means(found: Mapping[tuple[Case, str], Figures], peer: str) -> str:
    """For each recipe and trainer the geometric means, over resolutions, batches and processes, of the ratios."""
    rows = []
    for recipe, way in dict.fromkeys((case.recipe, way) for case, way in found if way != peer):
        pairs = [
            (of, found[case, peer])
            for (case, trainer), of in found.items()
            if (case.recipe, trainer) == (recipe, way)
        ]
        ratios = [
            [theirs.step / mine.step for mine, theirs in pairs],
            [mine.cpu / theirs.cpu for mine, theirs in pairs],
            [mine.first_step / theirs.first_step for mine, theirs in pairs],
            [mine.peak_bytes / theirs.peak_bytes for mine, theirs in pairs],
        ]
        rows.append([recipe, way, *(f"{_geometric(of):.2f}" for of in ratios)])
    return _table(("× peer, mean", "trainer", "steps/s", "CPU per step", "first step", "peak RSS"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _geometric(values: Sequence[float]) -> float:
    known = [math.log(value) for value in values if not math.isnan(value)]
    return math.exp(sum(known) / len(known)) if known else math.nan
