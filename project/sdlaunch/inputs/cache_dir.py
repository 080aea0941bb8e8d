"""Where the launcher keeps what it downloads: outside the mounts, the same folder at every start."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def cache_folder(cache_dir: str | None, environ: Mapping[str, str]) -> Path:
    """`cache_dir`, else the user's cache folder, else (where that cannot be written) a temporary one."""
    if cache_dir:
        return Path(cache_dir).expanduser().absolute()
    base = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "/nonexistent", ".cache"))
    if os.access(next(path for path in (base, *base.parents) if path.exists()), os.W_OK):
        return base / "sd-finetune"
    return Path(tempfile.gettempdir()) / f"sd-finetune-{os.getuid()}"
