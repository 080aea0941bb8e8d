"""The curves of metrics.jsonl, read on from where the last look ended, with a bounded number of points."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdjob import reading

POINTS = 1500  # at most in a curve, and up to twice as many between two thinnings
_BLOCK = 8 << 20  # bytes read at a time
_HEAD = 64  # bytes
_LONGEST = 1 << 16  # bytes of a line
_NAMES = 100  # of metrics, ten times as many as there are
_STARTS = 10_000  # the newest


@dataclass
class Point:
    """The mean of consecutive logged steps; `step` and `time` are those of the last one."""

    step: int
    time: float
    count: int = 1
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, other: Point) -> None:
        self.count += (
            other.count if other.step != self.step else 0
        )  # training and validation log lines of their own
        self.step, self.time = other.step, other.time
        for name, (total, count) in other.sums.items():
            before, times = self.sums.get(name, (0.0, 0))
            self.sums[name] = (before + total, times + count)

    def mean(self, name: str) -> float | None:
        total, count = self.sums.get(name, (0.0, 0))
        return total / count if count else None


class Curves:
    """What a file of metrics holds so far. A resumed run supersedes the steps that it repeats."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._clear()

    def _clear(self) -> None:
        self._head = b""  # the first bytes, which hold a time: where they differ, the file is another one
        self._offset, self._group = 0, 1
        self._names: set[str] = set()
        self.points: list[Point] = []
        self.starts: list[tuple[int, float]] = []  # the first step of each start, and its time

    def update(self) -> None:
        """Read the lines that were added; nothing without a file."""
        try:
            file = reading.opened(self._path)
        except OSError:
            self._clear()
            return
        with file, contextlib.suppress(OSError):
            size = os.fstat(file.fileno()).st_size
            if size < self._offset or file.read(len(self._head)) != self._head:
                self._clear()
            file.seek(0)
            self._head = self._head or file.read(_HEAD)
            self._offset = max(self._offset, size - reading.TEXT)
            file.seek(self._offset)
            while self._take(file.read(_BLOCK)):
                file.seek(self._offset)

    def _take(self, block: bytes) -> bool:
        """Add the complete lines of a block; whether there may be more."""
        end = block.rfind(b"\n") + 1
        for line in block[:end].splitlines():
            with contextlib.suppress(*reading.NOT_AS_WRITTEN):
                self._add(reading.json_of(line[:_LONGEST]))
        self._offset += end or (len(block) if len(block) == _BLOCK else 0)
        return len(block) == _BLOCK

    def _add(self, values: dict[str, Any]) -> None:
        step, time = int(values["step"]), float(values.get("time", 0.0))
        if not math.isfinite(time):
            raise ValueError
        numbers = {
            name: (float(value), 1)
            for name, value in values.items()
            if name not in ("step", "time") and type(value) in (int, float) and math.isfinite(value)
        }
        self._names.update([name for name in numbers if name not in self._names][: _NAMES - len(self._names)])
        while self.points and self.points[-1].step > step:
            self.points.pop()
        if not numbers:
            self.starts.append((step, time))
            del self.starts[:-_STARTS]
            return
        numbers = {name: number for name, number in numbers.items() if name in self._names}
        point = Point(step, time, 1, numbers)
        last = self.points[-1] if self.points else None
        if last and (last.step == step or last.count < self._group):
            last.add(point)
        else:
            self.points.append(point)
        if len(self.points) >= 2 * POINTS:
            self._thin()

    def _thin(self) -> None:
        """Half as many points, each the mean of two."""
        self._group *= 2
        pairs = [self.points[first : first + 2] for first in range(0, len(self.points), 2)]
        for first, *second in pairs:
            for each in second:
                first.add(each)
        self.points = [first for first, *_ in pairs]

    def columns(self) -> dict[str, Any]:
        """Lists of one length: step, time, and each metric with None where it was not measured."""
        names = sorted({name for point in self.points for name in point.sums})
        values = {name: [_rounded(point.mean(name)) for point in self.points] for name in names}
        steps = [point.step for point in self.points]
        times = [round(point.time, 1) for point in self.points]
        return {"step": steps, "time": times, **values}

    @property
    def group(self) -> int:
        """How many logged steps a point is the mean of."""
        return self._group


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
