"""From the notes of the processes to figures, and from the figures of many runs to a table in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
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
    steps_per_second: float = math.nan
    cpu_per_step: float = math.nan  # seconds of all processes
    peak_bytes: float = math.nan  # resident, of all processes
    ending: float = math.nan  # seconds from the last update to the end of the command


def measured(ranks: Sequence[Mapping[str, Any]], began: float, ended: float, skip: int) -> Run:
    """From the notes of all ranks; the times are those of the first."""
    walls = ranks[0]["walls"]
    steps = len(walls) - skip
    return Run(
        code=0,
        began=began,
        seconds=ended - began,
        first_step=walls[0] - began,
        steps_per_second=steps / (walls[-1] - walls[skip - 1]),
        cpu_per_step=sum(rank["cpus"][-1] - rank["cpus"][skip - 1] for rank in ranks) / steps,
        peak_bytes=sum(rank["peak_bytes"] for rank in ranks),
        ending=ended - walls[-1],
    )


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
    """Facts, means over all cases, and a row for each case and trainer; every figure a median over the rounds."""
    head = "\n".join(f"- {name}: {value}" for name, value in about.items())
    rows = [_row(case, way, of, runs[case, peer]) for (case, way), of in sorted(runs.items(), key=_place)]
    parts = ["# Beside the example scripts of diffusers", head, _means(runs, peer), _table(COLUMNS, rows)]
    return "\n\n".join(parts) + "\n"


def ratio(figure: str, of: Sequence[Run], peers: Sequence[Run]) -> float:
    """Median over the rounds of this trainer's figure through the peer's of the same round."""
    pairs = [(getattr(a, figure), getattr(b, figure)) for a, b in zip(of, peers, strict=False)]
    return _median([mine / theirs for mine, theirs in pairs])


def _place(item: tuple[tuple[Case, str], Any]) -> tuple[Any, ...]:
    case, way = item[0]
    return case.processes, case.recipe, case.resolution, case.batch, way


def _row(case: Case, way: str, of: Sequence[Run], peers: Sequence[Run]) -> list[str]:
    speed = _median([run.steps_per_second for run in of])
    return [
        case.recipe,
        str(case.resolution),
        str(case.batch),
        str(case.processes),
        way,
        f"{_median([run.first_step for run in of]):.1f}",
        f"{speed:.1f}",
        f"{speed * case.images:.1f}",
        f"{_median([run.cpu_per_step for run in of]) * 1e3:.0f}",
        f"{_median([run.peak_bytes for run in of]) / MIB:.0f}",
        f"{_median([run.ending for run in of]):.1f}",
        " ".join(sorted({str(run.code) for run in of})),
        f"{ratio('steps_per_second', of, peers):.2f}",
        f"{ratio('cpu_per_step', of, peers):.2f}",
    ]


def _means(runs: Runs, peer: str) -> str:
    """For each recipe and trainer the geometric means, over resolutions, batches and processes, of the ratios."""
    recipes = dict.fromkeys((case.recipe, way) for case, way in runs if way != peer)
    rows = []
    for recipe, way in recipes:
        cases = [case for case, of in runs if case.recipe == recipe and of == way]
        means = [
            _geometric([ratio(figure, runs[case, way], runs[case, peer]) for case in cases])
            for figure in ("steps_per_second", "cpu_per_step", "first_step", "peak_bytes")
        ]
        rows.append([recipe, way, *(f"{mean:.2f}" for mean in means)])
    return _table(("× peer, mean", "trainer", "steps/s", "CPU per step", "first step", "peak RSS"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return median(known) if known else math.nan


def _geometric(values: Sequence[float]) -> float:
    known = [math.log(value) for value in values if not math.isnan(value)]
    return math.exp(sum(known) / len(known)) if known else math.nan
