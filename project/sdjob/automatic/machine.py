"""What a machine has: memory, and what torch.compile needs, found without compiling anything."""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

_COMPILERS = {"cuda": ("CC", "gcc", "clang"), "cpu": ("CXX", "g++", "clang++")}  # of Triton, of Inductor


def lacking(device: str, environ: Mapping[str, str] = os.environ) -> str:
    """The first thing that is missing to compile for a device, such as "Python.h"; empty: nothing."""
    if device not in _COMPILERS:
        return ""
    variable, *names = _COMPILERS[device]
    named = environ.get(variable, "").split()[:1]  # it may hold options too
    path = environ.get("PATH")
    if not any(shutil.which(name, path=path) for name in named or names):
        return f"compiler ({' or '.join(named or names)})"
    if not os.access(Path(sysconfig.get_paths()["include"], "Python.h"), os.R_OK):
        return "Python.h"
    if device == "cuda" and find_spec("triton") is None:
        return "triton"
    return ""


def host_memory(cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this machine has, or that the container may have where that is less; None: not known."""
    known = []
    with contextlib.suppress(OSError, ValueError):  # ValueError: not a name on this system
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in (cgroups / "memory.max", cgroups / "memory" / "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max", no limit
            known.append(int(limit.read_text()))
    return min(known, default=None)
