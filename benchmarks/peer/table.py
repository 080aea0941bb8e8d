"""From the records of the processes to measurements, and from those of many runs to a table in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class Case:
    """The same work for all trainers."""

    recipe: str
    resolution: int
    batch: int  # images per process
    processes: int
    images: int  # of a step, of all processes


@dataclass(frozen=True)
class Run:
    """One run; the measurements are NaN if it failed."""

    code: int
    began: float  # seconds since the epoch
    seconds: float = math.nan  # of the whole command
    first_step: float = math.nan  # seconds from the start of the command to the first update
    first_cpu: float = math.nan  # seconds of processor time up to there, of all processes that train
    peak_bytes: float = math.nan  # resident, of all processes
    steps: tuple[float, ...] = ()  # seconds of each step
    cpus: tuple[float, ...] = ()  # seconds of processor time of each step, of all processes


def measured(ranks: Sequence[Mapping[str, Any]], began: float, ended: float, skip: int) -> Run:
    """From the records of all ranks: (time, processor time) when each step ended and when the next one started.

    A step ends when its update does. The last one is not counted: other trainers are already ending then.
    """
    ends = ranks[0]["ends"]
    each = [_lasted(rank)[skip - 1 : -1] for rank in ranks]
    return Run(
        code=0,
        began=began,
        seconds=ended - began,
        first_step=ends[0][0] - began,
        first_cpu=sum(rank["ends"][0][1] for rank in ranks),
        peak_bytes=sum(rank["peak_bytes"] for rank in ranks),
        steps=tuple(wall for wall, _ in each[0]),
        cpus=tuple(sum(cpu for _, cpu in of) for of in zip(*each, strict=True)),
    )


def known(run: Run) -> dict[str, Any]:
    """The run for a JSON file, without the values that were not measured."""
    return {name: value for name, value in asdict(run).items() if value == value}


def read(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Case, str], list[Run]]:
    """The runs of the rows of a JSON file, each of which has the case, the trainer and what `known` returned."""
    return {
        (Case(**{each.name: row[each.name] for each in fields(Case)}), row["trainer"]): [
            Run(**{name: tuple(value) if isinstance(value, list) else value for name, value in run.items()})
            for run in row["runs"]
        ]
        for row in rows
    }


def _lasted(notes: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Seconds and processor seconds of every step but the first, whose start is not recorded."""
    pairs = zip(notes["begins"], notes["ends"][1:], strict=False)
    return [(round(end[0] - begin[0], 6), round(end[1] - begin[1], 6)) for begin, end in pairs]


Runs = Mapping[tuple[Case, str], Sequence[Run]]
STEPS = (
    "recipe",
    "px",
    "batch",
    "processes",
    "trainer",
    "step (ms)",
    "steps/s",
    "images/s",
    "CPU of a step (ms)",
    "peak RSS (MiB)",
    "exit",
    "steps/s, × peer",
    "CPU, × peer",
)
STARTS = (
    "recipe",
    "processes",
    "trainer",
    "first step (s)",
    "CPU until then (s)",
    "whole command (s)",
    "exit",
)


def steps(about: Mapping[str, Any], runs: Runs, peer: str) -> str:
    """Facts; means over all cases; a row for each case and trainer."""
    rows = [_row(case, way, runs[case, way], runs[case, peer]) for case, way in sorted(runs, key=_order)]
    parts = [
        "# Steps, compared with the example scripts of diffusers",
        _listed(about),
        "Means over all cases, × diffusers:",
        _means(runs, peer),
        "Every case:",
        _table(STEPS, rows),
    ]
    return "\n\n".join(parts) + "\n"


def starts(about: Mapping[str, Any], runs: Runs) -> str:
    """Facts; from the command to the first step, and to the end of two."""
    rows = [_start(case, way, runs[case, way]) for case, way in sorted(runs, key=_order)]
    parts = ["# Starts, compared with the example scripts of diffusers", _listed(about), _table(STARTS, rows)]
    return "\n\n".join(parts) + "\n"


def _listed(about: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in about.items())


def faster(mine: Sequence[Run], theirs: Sequence[Run]) -> float:
    """Ratio of speeds, mine to theirs: the median over all turns."""
    pairs = zip(_all("steps", mine), _all("steps", theirs), strict=False)
    return _quantile([their / my for my, their in pairs], 0.5)


def cpu_ratio(mine: Sequence[Run], theirs: Sequence[Run]) -> float:
    """Ratio of processor times per step, mine to theirs: the median over all turns."""
    pairs = zip(_all("cpus", mine), _all("cpus", theirs), strict=False)
    return _quantile([my / their for my, their in pairs], 0.5)


def _all(figure: str, runs: Sequence[Run]) -> list[float]:
    return [value for run in runs for value in getattr(run, figure)]


def _middle(figure: str, runs: Sequence[Run]) -> float:
    return _quantile([getattr(run, figure) for run in runs if run.code == 0], 0.5)


def _quantile(values: Sequence[float], part: float) -> float:
    """A quantile, interpolated between the two nearest values; NaN if there are none."""
    if not values:
        return math.nan
    index = part * (len(values) - 1)
    below, above = sorted(values)[math.floor(index)], sorted(values)[math.ceil(index)]
    return below + (above - below) * (index - math.floor(index))


def _order(key: tuple[Case, str]) -> tuple[Any, ...]:
    case, way = key
    return case.processes, case.recipe, case.resolution, case.batch, way


def _row(case: Case, way: str, of: Sequence[Run], peers: Sequence[Run]) -> list[str]:
    """The median time of a step, and the lower quartile of its processor time, which other load affects least."""
    step = _quantile(_all("steps", of), 0.5)
    return [
        case.recipe,
        str(case.resolution),
        str(case.batch),
        str(case.processes),
        way,
        f"{step * 1e3:.0f}",
        f"{1 / step:.1f}",
        f"{case.images / step:.1f}",
        f"{_quantile(_all('cpus', of), 0.25) * 1e3:.0f}",
        f"{_middle('peak_bytes', of) / MIB:.0f}",
        _codes(of),
        f"{faster(of, peers):.2f}",
        f"{cpu_ratio(of, peers):.2f}",
    ]


def _start(case: Case, way: str, of: Sequence[Run]) -> list[str]:
    times = [f"{_middle(figure, of):.1f}" for figure in ("first_step", "first_cpu", "seconds")]
    return [case.recipe, str(case.processes), way, *times, _codes(of)]


def _codes(runs: Sequence[Run]) -> str:
    return " ".join(str(code) for code in sorted({run.code for run in runs}))


def _means(turns: Runs, peer: str) -> str:
    """For each recipe and trainer the geometric means of the ratios, over resolutions, batches and processes."""
    rows = []
    whole: dict[str, tuple[list[float], list[float], list[float]]] = {}  # of all recipes
    for recipe, way in dict.fromkeys((case.recipe, way) for case, way in turns if way != peer):
        pairs = [
            (of, turns[case, peer])
            for (case, trainer), of in turns.items()
            if (case.recipe, trainer) == (recipe, way)
        ]
        ratios = [
            [faster(mine, theirs) for mine, theirs in pairs],
            [cpu_ratio(mine, theirs) for mine, theirs in pairs],
            [_middle("peak_bytes", mine) / _middle("peak_bytes", theirs) for mine, theirs in pairs],
        ]
        rows.append([recipe, way, *(f"{_geometric(of):.2f}" for of in ratios)])
        for known, of in zip(whole.setdefault(way, ([], [], [])), ratios, strict=True):
            known += of
    rows += [["all", way, *(f"{_geometric(of):.2f}" for of in ratios)] for way, ratios in whole.items()]
    return _table(("recipe", "trainer", "steps/s", "CPU of a step", "peak RSS"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _geometric(values: Sequence[float]) -> float:
    known = [math.log(value) for value in values if not math.isnan(value)]
    return math.exp(sum(known) / len(known)) if known else math.nan
