"""Memory of the host that is available, within the limit of this container."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

# cgroup versions 2 and 1: files of the limit and the usage, and the statistic of the file cache in that usage.
_VERSIONS = (
    (Path(), "memory.max", "memory.current", "inactive_file"),
    (Path("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes available: of the machine, or of the container if that is less."""
    known = [int(psutil.virtual_memory().available)]
    for folder, limit, current, cache in _VERSIONS:
        with suppress(OSError, ValueError):  # ValueError: "max", no limit
            allowed, used = (int((cgroups / folder / name).read_text()) for name in (limit, current))
            statistics = (cgroups / folder / "memory.stat").read_text().splitlines()
            freeable = dict(line.split(maxsplit=1) for line in statistics).get(cache, "0")
            known.append(allowed - used + int(freeable))
    return min(known)
