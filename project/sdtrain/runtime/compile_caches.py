"""Where compiled code is kept for the next start: with the other caches of the run, not in HOME."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from sdjob.output.layout import OutputLayout
from sdjob.settings.run_spec import RunSpec
from sdjob.writing import refuse_links

_INDUCTOR, _TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"


def use(spec: RunSpec, layout: OutputLayout, environ: MutableMapping[str, str]) -> str:
    """Set the folders; returns why the code is not kept. To be called before torch is imported, which sets its own.

    What the user has set stays.
    """
    if spec.compile not in ("whole", "blocks") or _INDUCTOR in environ:
        return ""
    folder = layout.cache(spec.cache_dir) / "compiled"
    if folder.is_relative_to(layout.root):
        layout.make(folder.parent)
        refuse_links(folder, layout.root)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if reason := _unusable(folder):
        folder = Path(tempfile.mkdtemp(prefix="compiled-"))
    environ[_INDUCTOR] = str(folder / "inductor")
    environ.setdefault(_TRITON, str(folder / "triton"))
    return reason


def _unusable(folder: Path) -> str:
    """Why a folder cannot hold code that is loaded again; empty: it can."""
    about = folder.stat()
    if about.st_uid != os.geteuid() or about.st_mode & 0o022:
        return f"{folder} can be written by others, and code is loaded from there"
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return f"{folder} is mounted noexec"
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except BlockingIOError:
        return ""
    except OSError as error:
        return f"{folder} has no file locks ({error.strerror})"
    return ""
