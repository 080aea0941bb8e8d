"""How much memory of the host is left, for this container too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
# Of version 2, and of version 1: limit, use, and the name of that part of the use which is only file cache.
_VERSIONS = (
    (Path(), "memory.max", "memory.current", "inactive_file"),
    (Path("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available(cgroups: Path = _CGROUPS) -> int:
    """Bytes that can still be had: of the machine, or of the container where that is less."""
    return min([int(psutil.virtual_memory().available), *_left_of_the_container(cgroups)])


def _left_of_the_container(cgroups: Path) -> list[int]:
    for folder, limit, current, cache in _VERSIONS:
        try:
            allowed = (cgroups / folder / limit).read_text().strip()
            used = int((cgroups / folder / current).read_text())
            freeable = _statistics(cgroups / folder / "memory.stat").get(cache, 0)
        except (OSError, ValueError):
            continue
        return [] if allowed == "max" else [int(allowed) - used + freeable]
    return []


def _statistics(path: Path) -> Mapping[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {name: int(value) for name, value in rows}
