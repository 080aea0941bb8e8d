"""Memory of the host that is available, within the limit of this container."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
# cgroup versions 2 and 1: files of the limit and the usage, and the statistic of the file cache in that usage.
_VERSIONS = (
    (Path(), "memory.max", "memory.current", "inactive_file"),
    (Path("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available(cgroups: Path = _CGROUPS) -> int:
    """Bytes available: of the machine, or of the container if that is less."""
    return min([int(psutil.virtual_memory().available), *_available_in_container(cgroups)])


def _available_in_container(cgroups: Path) -> list[int]:
    for folder, limit, current, cache in _VERSIONS:
        try:
            allowed = (cgroups / folder / limit).read_text().strip()
            used = int((cgroups / folder / current).read_text())
            statistics = (cgroups / folder / "memory.stat").read_text().splitlines()
            freeable = int(dict(line.split(maxsplit=1) for line in statistics).get(cache, 0))
        except (OSError, ValueError):
            continue
        return [] if allowed == "max" else [int(allowed) - used + freeable]
    return []
