"""Where a job keeps temporary files: in the folder that TMPDIR names, or in another one where that fails.

Loader processes and torch talk through sockets in it, whose paths have at most 107 bytes: a longer one hangs a job.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdjob.files import shown, unwritable_reason
from sdjob.problems import JobError, Problem, no_hardware

_DEFAULTS = ("/tmp", "/var/tmp", "/dev/shm")  # the last where a container is read-only
_NEEDED = 1 << 20  # bytes
# Longest path of a socket, and what is added to the folder: "/torch-shm-dir-XXXXXX/manager.sock", and some more.
_SOCKET_PATH, _SOCKET_NAME = 107, 40
_NO_EXEC = "is mounted noexec: compiled kernels cannot be loaded from it"


@dataclass(frozen=True)
class TemporaryFolder:
    """The usable folder, or with problems the one that was named."""

    path: Path
    replaces: bool = False  # the folder that the environment names: the processes need TMPDIR
    warnings: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    def environment(self, folder: Path | None = None) -> dict[str, str]:
        """The variable that leads the processes to this folder, or to one in it that is removed at the end.

        torchrun and PyTorch leave files; only where a socket's path would be too long, they are left where TMPDIR says.
        """
        fits = folder is not None and len(os.fsencode(folder)) + _SOCKET_NAME <= _SOCKET_PATH
        return {"TMPDIR": str(folder or self.path)} if self.replaces or fits else {}


def find(environ: Mapping[str, str], defaults: Sequence[str] = _DEFAULTS) -> TemporaryFolder:
    """The first usable folder."""
    names = ("TMPDIR", "TEMP", "TMP")  # as Python reads them
    variable, named = next(((name, environ[name]) for name in names if environ.get(name)), ("TMPDIR", ""))
    faults: dict[Path, str] = {}
    for folder in map(Path, filter(None, (named, *defaults))):
        faults[folder] = _fault(folder.absolute())
        if not faults[folder]:
            break
    first = next(iter(faults))
    tolerable = ("", _NO_EXEC)  # the latter as long as nothing is compiled
    usable = next((path for worst in tolerable for path, fault in faults.items() if fault == worst), None)
    if usable is None:
        found = "; ".join(f"{shown(folder)} {fault}" for folder, fault in faults.items())
        remedy = (
            "Set TMPDIR to a writable folder with a short path, or start the container with --tmpfs /tmp."
        )
        return TemporaryFolder(first, problems=(no_hardware(variable, found, remedy),))
    if usable == first:
        return TemporaryFolder(first)
    warning = f"{variable}: {shown(first)} {faults[first]}; the processes use {usable}"
    return TemporaryFolder(usable, replaces=True, warnings=(warning,))


def _fault(folder: Path) -> str:
    """Why a folder is not usable, found by using it; "": it is."""
    length, most = len(os.fsencode(folder)), _SOCKET_PATH - _SOCKET_NAME
    try:
        with tempfile.TemporaryDirectory(prefix="sdjob-", dir=folder) as probe:
            Path(probe, "file").write_bytes(bytes(_NEEDED))
            if length > most:
                return f"is too long for the sockets of loader processes ({length} bytes, at most {most})"
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"{probe}/socket")
    except OSError as error:
        return unwritable_reason(error)
    return _NO_EXEC if os.statvfs(folder).f_flag & os.ST_NOEXEC else ""


@contextlib.contextmanager
def private(parent: Path, output: Path, node: int) -> Iterator[Path]:
    """While the body runs, a folder of the job on this node, for this user only. Raises JobError (69), OSError.

    Its name follows from the output folder, which the caller has locked: each start removes what a killed one has left.
    """
    info = output.stat()
    owner = f"{os.getuid()} {info.st_dev} {info.st_ino} {node}"
    folder = parent.absolute() / f"sdjob-{hashlib.sha256(owner.encode()).hexdigest()[:8]}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        folder.chmod(0o700)  # whatever the umask is
    except OSError as error:
        found = f"{folder} {unwritable_reason(error)}"
        raise JobError(no_hardware("TMPDIR", found, "Remove it, or set TMPDIR to another folder.")) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
